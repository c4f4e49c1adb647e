"""How a worker of a study trains: in a child process, with its own device, alone or with others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stl10bench.core.errors import StorageError
from stl10bench.studies import place
from stl10bench.studies.channel import Channel
from stl10bench.studies.jobs import run_child

_TAG = 64  # characters, W&B's limit


@dataclass(frozen=True)
class Hands:
    """How a worker trains: `train`'s options for all runs, and where the children's words go.

    With a `channel` every child is one of several that train the run together.
    """

    study: str
    for_train: tuple[str, ...]
    for_stack: tuple[str, ...]
    logs: Path
    place: place.Place
    threads: int
    gpus: int = 0
    channel: Channel | None = None

    @property
    def follows(self) -> bool:
        """Whether another worker says what is trained."""
        return self.channel is not None and not self.place.is_main

    def child(
        self, name: str, given: Sequence[str], tags: Sequence[str], watch: Callable[[], bool]
    ) -> tuple[int, dict[str, Any]]:
        """Run a command of ours in a child, with the others' if there is a channel."""
        if self.channel is None:
            environment = place.alone(self.place, threads=self.threads, gpus=self.gpus)
        else:
            port = self.channel.send({"name": name, "given": list(given), "tags": list(tags)})
            environment = place.together(threads=self.threads, port=port)
        return self._run(name, given, tags, environment, watch)

    def follow(self) -> None:
        """Take part in the runs that the first worker sends, until it sends no more."""
        assert self.channel is not None
        while (message := self.channel.receive()) is not None:
            environment = place.together(threads=self.threads, port=message["port"])
            self._run(
                f"{message['name']}-{self.place.rank}",
                message["given"],
                message["tags"],
                environment,
                lambda: False,
            )

    def _run(
        self,
        name: str,
        given: Sequence[str],
        tags: Sequence[str],
        environment: dict[str, str],
        watch: Callable[[], bool],
    ) -> tuple[int, dict[str, Any]]:
        environment.setdefault("WANDB_RUN_GROUP", self.study)
        labels = [tag.replace(",", " ")[:_TAG] for tag in (self.study, *tags)]
        environment.setdefault("WANDB_TAGS", ",".join(labels))
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            with (self.logs / f"{name}.txt").open("a", encoding="utf-8") as said:
                return run_child(given, environment=environment, said=said, watch=watch)
        except OSError as error:
            raise StorageError(f"cannot write {self.logs}: {error}") from error

    def train(
        self,
        name: str,
        model: str,
        given: Sequence[str],
        tags: Sequence[str],
        watch: Callable[[], bool],
    ) -> tuple[int, dict[str, Any]]:
        """Train one run in a child; its exit code and its row, or an `error`."""
        return self.child(name, ["train", model, *self.for_train, *given], tags, watch)

    def train_stack(
        self, name: str, model: str, members: str, watch: Callable[[], bool]
    ) -> tuple[int, dict[str, Any]]:
        """Train several settings of a small model, a JSON list, in one child."""
        given = ["study", "stack", model, *self.for_stack, "--members", members]
        return self.child(name, given, [], watch)
