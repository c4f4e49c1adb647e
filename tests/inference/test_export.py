"""A checkpoint as ONNX, for torch.export and as a hub folder."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from helpers.layout import NAMES, save

import stl10bench
from stl10bench.models import registry

IMAGES = torch.randint(0, 256, (3, 3, 40, 50), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("to", "name", "size", "options"),
    [
        ("onnx", "mlp", 8, {"hidden": (4,)}),
        ("torch", "mlp", 8, {"hidden": (4,)}),
        ("hub", "mlp", 8, {"hidden": (4,)}),
        ("onnx", "cnn", 61, {"channels": (2, 2, 2, 4), "hidden": (4,)}),
        ("torch", "timm:test_resnet", 32, {"hidden": (4,)}),
    ],
)
def test_an_export_is_compared_with_the_checkpoint_before_it_is_kept(
    cli: Any, tmp_path: Path, to: str, name: str, size: int, options: dict[str, Any]
) -> None:
    save(tmp_path / "m.safetensors", name, size, **options)
    output = {"onnx": "m.onnx", "torch": "m.pt2", "hub": "hub"}[to]
    code, out, err = cli("export", "m.safetensors", "--to", to, "--output", output, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    for key in ("own_size", "other_sizes"):
        assert found[key]["found"] <= found[key]["allowed"]
        assert found[key]["images"] >= 13
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["m.safetensors", output])


def test_onnx_takes_images_of_any_number_and_size_and_tells_its_classes(
    cli: Any, model: str
) -> None:
    import onnxruntime

    assert cli("export", model, "--to", "onnx", "--output", "m.onnx")[0] == 0
    session = onnxruntime.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == list(NAMES)
    assert json.loads(metadata["mean"]) == [0.4, 0.5, 0.6]
    expected = stl10bench.load(model)(IMAGES).detach().numpy()
    assert session.get_inputs()[0].type == "tensor(uint8)"
    for images in (IMAGES, IMAGES[:1]):
        logits = session.run(["logits"], {"images": images.numpy()})[0]
        assert np.abs(logits - expected[: len(images)]).max() < 0.05


def test_a_pt2_tells_its_classes_and_nothing_of_the_machine(cli: Any, model: str) -> None:
    for to, name in (("torch", "m.pt2"), ("onnx", "m.onnx")):
        assert cli("export", model, "--to", to, "--output", name)[0] == 0
        content = Path(name).read_bytes()
        assert b"class_names" in content
        for place in (Path(stl10bench.__file__).parent, Path(torch.__file__).parent, Path.cwd()):
            assert str(place).encode() not in content
    extra = {"metadata.json": ""}
    program = torch.export.load("m.pt2", extra_files=extra)
    assert json.loads(extra["metadata.json"])["class_names"] == list(NAMES)
    assert torch.equal(program.module()(IMAGES), stl10bench.load(model)(IMAGES))


def test_overwrite_replaces_an_export_and_leaves_nothing_else(cli: Any, tmp_path: Path) -> None:
    for seed, size in enumerate((8, 9)):
        save(tmp_path / "m.safetensors", size=size)
        for to, output in (("torch", "m.pt2"), ("hub", "hub")):
            more = ["--overwrite"] if seed else []
            assert cli("export", "m.safetensors", "--to", to, "--output", output, *more)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "m.pt2", "m.safetensors"]
    assert stl10bench.load("hub").header.config.image_size == 9


PLUGIN = """
import torch
from torch import nn
from stl10bench import register

class Odd(nn.Module):
    def __init__(self, num_classes, image_size):
        super().__init__()
        self.linear = nn.Linear(3 * image_size**2, num_classes)
    def forward(self, images):
        logits = self.linear(images.flatten(1))
        {line}

@register
def {name}(num_classes: int, image_size: int) -> nn.Module:
    return Odd(num_classes, image_size)
"""


@pytest.mark.parametrize(
    ("to", "name", "line", "code", "text"),
    [
        (
            "torch",
            "my_other",
            "return logits + 1 if torch.compiler.is_exporting() else logits",
            4,
            "the logits of the exported model differ at 8x8 px by 1.0e+00",
        ),
        (
            "torch",
            "my_branch",
            "return logits if logits.sum().item() > 0 else -logits",
            2,
            "cannot export model 'my_branch' with --to torch: GuardOnDataDependentSymNode: ",
        ),
        (
            "onnx",
            "my_fourier",
            "return logits + torch.special.bessel_j0(logits)",
            2,
            "cannot export model 'my_fourier' with --to onnx: ",
        ),
    ],
)
@pytest.mark.usefixtures("forgetful")
def test_an_export_that_fails_leaves_nothing_and_says_why_in_one_line(
    cli: Any, tmp_path: Path, to: str, name: str, line: str, code: int, text: str
) -> None:
    (tmp_path / f"{name}.py").write_text(PLUGIN.format(name=name, line=line))
    registry.load_plugin(name)
    save(tmp_path / "m.safetensors", name)
    before = sorted(tmp_path.iterdir())
    output = {"torch": "m.pt2", "onnx": "m.onnx"}[to]
    found, out, err = cli("export", "m.safetensors", "--to", to, "--output", output)
    assert (found, out) == (code, "")
    assert "[96m" not in err
    assert text in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_missing_extra_is_named(cli: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = cli("export", model, "--to", "onnx", "--output", "m.onnx")
    assert code == 2
    assert "pip install 'stl10bench[onnx]'" in err


# the hub's layout


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint that has a timm backbone, and its export `hub`."""
    folder = tmp_path_factory.mktemp("exported")
    save(folder / "m.safetensors", "timm:test_resnet", 32, freeze=False, hidden=(4,))
    stl10bench.export(folder / "m.safetensors", to="hub", output=folder / "hub")
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy of the exported folder, in a working folder of its own."""
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    return tmp_path / "hub"


def test_a_hub_folder_is_the_classifier_for_us_and_the_backbone_for_timm(folder: Path) -> None:
    whole = stl10bench.load(folder.with_name("m.safetensors"))
    assert torch.equal(stl10bench.load(folder)(IMAGES), whole(IMAGES))
    assert stl10bench.load(folder).header == whole.header
    backbone = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(backbone(images), whole.model.get_submodule("backbone")(images))
    assert backbone.pretrained_cfg["mean"] == [0.4, 0.5, 0.6]
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "config.json", "head.safetensors", "model.safetensors")
    }


@pytest.mark.parametrize("name", ["model.safetensors", "head.safetensors"])
def test_a_flipped_byte_in_either_file_is_detected(cli: Any, folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-5] ^= 1
    (folder / name).write_bytes(content)
    code, _, err = cli("predict", "hub", "a.png")
    assert code == 4
    assert "hub is damaged" in err
    (folder / name).unlink()
    assert cli("predict", "hub", "a.png")[0] == 4


def test_a_hub_folder_can_be_exported_again(cli: Any, folder: Path) -> None:
    assert cli("export", "hub", "--to", "hub", "--output", "again")[0] == 0
    for name in ("model.safetensors", "head.safetensors"):
        assert (folder / name).read_bytes() == (folder.parent / "again" / name).read_bytes()


def test_a_model_without_a_timm_backbone_is_one_file_and_the_card_says_so(
    cli: Any, model: str
) -> None:
    assert cli("export", model, "--to", "hub", "--output", "hub")[0] == 0
    tensors = safetensors.torch.load_file("hub/model.safetensors")
    assert tensors.keys() == safetensors.torch.load_file(model).keys()
    assert not Path("hub/head.safetensors").exists()
    card = Path("hub/README.md").read_text()
    assert "It has no timm backbone" in card
    assert "The data are not known" in card
    assert json.loads(Path("hub/config.json").read_text())["class_names"] == list(NAMES)


def test_the_card_carries_the_row_of_its_run_and_says_what_is_no_stl10_result(
    cli: Any, data_dir: Path, tmp_path: Path
) -> None:
    row = stl10bench.train(
        *("logistic",), data_dir=data_dir, tracker="none", threads=1, image_size=8, epochs=1,
        batch_size=8, runs_dir=tmp_path / "runs", seed=5,
    )  # fmt: skip
    best = tmp_path / "runs" / row["checkpoint"]
    assert cli("export", str(best), "--to", "hub", "--output", "hub")[0] == 0
    card = Path("hub/README.md").read_text()
    low, high = row["test_accuracy_interval"]
    assert f"{row['test_accuracy']:.4f} [{low:.4f}, {high:.4f}], 20 images" in card
    assert "**Not an STL-10 result.**" in card
    assert row.config.data in card
    assert "| seed, epoch | 5, 1 of 1 |" in card
    assert str(tmp_path) not in card
    last = best.with_name("last.safetensors")
    assert cli("export", str(last), "--to", "hub", "--output", "last")[0] == 0
    assert "The data are not known" in Path("last/README.md").read_text()  # the row is of `best`


def test_a_demo_is_called_a_demo_and_names_are_only_names(tmp_path: Path) -> None:
    from stl10bench.inference.hub import model_card
    from stl10bench.results.rows import Row

    made = stl10bench.load(save(tmp_path / "m.safetensors")).header
    hostile = made.model_copy(update={"class_names": ("a|b", "<script>", "# x\n---", "[u](http:)")})
    row: dict[str, Any] = {
        **{"model": "logistic", "dataset": "demo", "test_accuracy": 0.5, "test_loss": None},
        **{"test_accuracy_interval": (0.4, 0.6), "test_images": 9, "parameters": 1, "macs": 1},
        **{"trainable_parameters": 1, "train_seconds": 1.0, "precision": "no"},
    }
    text = model_card(hostile, Row(**row, config=hostile.config))
    assert "**A demo**: trained and tested on images drawn by code." in text
    (line,) = (line for line in text.splitlines() if line.startswith("| classes"))
    assert line == r"| classes | a\|b, &lt;script\>, # x ---, \[u\](http:) |"
    assert text.count("\n---\n") == 1  # the end of the front matter
