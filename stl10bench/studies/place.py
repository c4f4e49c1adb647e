"""Where a worker stands among those of its launcher -> the environment of the runs it starts."""

import os
from collections.abc import Mapping
from typing import NamedTuple

_LAUNCHERS = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
    *("ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
}
_PREFIXES = ("TORCHELASTIC_", "ACCELERATE_", "OMPI_COMM_WORLD_", "PMI_", "MV2_COMM_WORLD_")


class Place(NamedTuple):
    """One of `world` workers, `local_world` of them on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def here(environment: Mapping[str, str] = os.environ) -> Place:
    """What torchrun or `accelerate launch` said; alone without one of them."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Place(*(int(environment.get(name, name.endswith("SIZE"))) for name in names))


def alone(place: Place, *, threads: int, gpus: int) -> dict[str, str]:
    """The environment of a run that a worker trains for itself.

    Without any trace of the launcher, else it would wait for the other workers; with one of this
    machine's `gpus`, if there are any and other workers beside us.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _LAUNCHERS and not name.startswith(_PREFIXES)
    }
    kept["OMP_NUM_THREADS"] = str(threads)
    if gpus and place.local_world > 1:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        devices = seen.split(",")
        kept["CUDA_VISIBLE_DEVICES"] = devices[place.local_rank % len(devices)]
    return kept


def together(*, threads: int, port: int) -> dict[str, str]:
    """The environment of our share of a run that all workers train: they meet at a port of its own.

    The agent's own store keeps what earlier runs left in it, so it is not used.
    """
    kept = {k: v for k, v in os.environ.items() if k != "TORCHELASTIC_USE_AGENT_STORE"}
    return {**kept, "MASTER_PORT": str(port), "OMP_NUM_THREADS": str(threads)}
