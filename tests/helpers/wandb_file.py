"""What an offline run of Weights & Biases holds, read with its own protobuf messages."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Logged(NamedTuple):
    """A run as W&B would upload it."""

    run: Any  # the last RunRecord
    config: dict[str, Any]
    summary: dict[str, Any]
    history: list[dict[str, Any]]
    metrics: dict[str, Any]  # name -> MetricRecord
    artifacts: list[Any]  # ArtifactRecords


def read(folder: Path) -> Logged:
    """The one offline run of a run folder, when W&B's own process has written its end."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    until, written = time.monotonic() + 60, list(_records(path))
    while not (written and written[-1].HasField("exit")) and time.monotonic() < until:
        time.sleep(0.01)
        written = list(_records(path))
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    logged = Logged(None, config, summary, [], {}, [])
    for record in written:
        if record.HasField("run"):
            logged = logged._replace(run=record.run)
        config |= _values([*record.run.config.update, *record.config.update])
        summary |= _values(record.summary.update)
        if record.HasField("history"):
            logged.history.append(_values(record.history.item))
        if record.HasField("metric"):
            logged.metrics[record.metric.name] = record.metric
        if record.HasField("artifact"):
            logged.artifacts.append(record.artifact)
    return logged


def _values(items: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in items:
        *parents, key = item.nested_key or [item.key]
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[key] = json.loads(item.value_json)
    return values


def _records(path: Path) -> Iterator[Any]:
    """The records of an offline W&B run: LevelDB's log format around protobuf messages."""
    from wandb.proto import wandb_internal_pb2

    content, position, parts = path.read_bytes(), 7, b""  # after W&B's own 7-byte header
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
        _, length, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""
