"""What the first worker of a launcher says to all of them, where they train each run together.

Through a store, not a process group: the workers themselves compute nothing together.
"""

import json
import os
import socket
import time
from typing import Any

from stl10bench.studies.place import Place

_LOOK = 0.1  # seconds between two looks; a blocked one would hear no signal


class Channel:
    """Messages in one order for all workers, by the launcher's own store if it has one."""

    def __init__(self, place: Place) -> None:
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

        launchers = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=place.is_main and not launchers,
            wait_for_workers=False,
        )
        self._store = PrefixStore("stl10bench", store)
        self._count = 0

    def send(self, message: dict[str, Any]) -> int:
        """Tell the others of a run; returns the free port at which it meets."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            port: int = probe.getsockname()[1]
        self._put({**message, "port": port})
        return port

    def end(self) -> None:
        """Tell the others that there are no more runs."""
        self._put(None)

    def receive(self) -> dict[str, Any] | None:
        """The next message; None when there will be no more."""
        while not self._store.check([str(self._count)]):
            time.sleep(_LOOK)
        message: dict[str, Any] | None = json.loads(self._store.get(str(self._count)))
        self._count += 1
        return message

    def _put(self, message: dict[str, Any] | None) -> None:
        self._store.set(str(self._count), json.dumps(message))
        self._count += 1
