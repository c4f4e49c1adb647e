"""Views of unlabelled images: which, in which order, and drawn as what."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.layout import write_layout

from stl10bench.config import make_config
from stl10bench.data.load import open_data
from stl10bench.data.loader import load_images, make_normalise
from stl10bench.data.unlabelled import find_unlabelled
from stl10bench.data.views import Views, image_reader, places_of, weak_and_strong

CPU = torch.device("cpu")


def test_every_image_comes_once_in_each_lap() -> None:
    stream = np.concatenate([places_of(number, 4, 7, seed=3) for number in range(7)])
    laps = stream.reshape(4, 7)
    assert all(sorted(lap) == list(range(7)) for lap in laps.tolist())
    assert len({tuple(lap) for lap in laps.tolist()}) == 4
    assert (places_of(0, 7, 7, seed=4) != laps[0]).any()


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    data_dir = write_layout(tmp_path_factory.mktemp("views"))
    stored = np.fromfile(data_dir / "stl10_binary/train_X.bin", dtype=np.uint8)
    (stored.reshape(40, -1)[:7] ^ 1).tofile(data_dir / "stl10_binary/unlabeled_X.bin")
    data = open_data("stl10", data_dir, download=False, verify=False, console=None)  # type: ignore[arg-type]
    config = make_config(
        {
            "model": "logistic",
            "image_size": 16,
            "labels_per_class": 2,
            "val_fraction": 0.5,
            "unlabeled": "all",
        }
    )
    return config, find_unlabelled(config, data)


def test_images_are_read_by_their_places_in_both_files(unlabelled: Any) -> None:
    config, images = unlabelled
    read = image_reader(images, config, CPU)
    everything = torch.cat([load_images(*part, config, CPU).images for part in images.parts])
    places = np.array([38, 0, 33, 5, 32])
    assert len(everything) == len(images) == 39
    assert torch.equal(read(places), everything[places])


def test_two_processes_share_the_views_of_one(unlabelled: Any) -> None:
    config, images = unlabelled

    def batch(process: int, processes: int) -> list[torch.Tensor]:
        accelerator: Any = SimpleNamespace(
            device=CPU, process_index=process, num_processes=processes
        )
        normalise = make_normalise((0.5,) * 3, (0.2,) * 3, torch.contiguous_format, CPU)
        read = image_reader(images, config, CPU)
        views = Views(read, len(images), weak_and_strong(config), 6, normalise, accelerator)
        return views.batch(11)

    alone, first, second = batch(0, 1), batch(0, 2), batch(1, 2)
    for kind in (0, 1):
        torch.testing.assert_close(torch.cat([first[kind], second[kind]]), alone[kind])
    assert not torch.equal(alone[0], alone[1])
