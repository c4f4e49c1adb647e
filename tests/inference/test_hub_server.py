"""Models to and from the Hugging Face Hub, by a server on loopback that speaks its protocol."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.hub_server import Hub, running
from helpers.layout import NAMES, save
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file

import stl10bench
from stl10bench.core.errors import BenchError, CheckpointError, StorageError, UsageError
from stl10bench.inference.export import export_and_push
from stl10bench.models import hub_files

TINY: dict[str, Any] = {
    **{"image_size": 32, "epochs": 1, "batch_size": 8, "threads": 1, "tracker": "none"},
    **{"precision": "no", "hidden": (4,), "lr": 1e-12, "weight_decay": 0.0},
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running(monkeypatch, tmp_path / "cache") as server:
        yield server


@pytest.fixture
def timm_folder(hub: Hub, tmp_path: Path) -> Path:
    """What hf-hub:some/model holds, as timm's own push_to_hf_hub would write it."""
    folder, names = tmp_path / "timm", list("abcdefg")
    model = timm.create_model("test_resnet", num_classes=len(names))
    config = {"label_names": names}
    timm.models.save_for_hf(model, folder, model_config=config, safe_serialization=True)
    hub.serve_folder("some/model", folder)
    return folder


def train(model: str, data_dir: Path, tmp_path: Path, **options: Any) -> Any:
    where = {"data_dir": data_dir, "runs_dir": tmp_path / "runs"}
    return stl10bench.train(model, **{**TINY, **where, **options})


def test_a_model_of_the_hub_is_timms_with_its_own_weights(
    hub: Hub, data_dir: Path, tmp_path: Path, timm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = train("hf-hub:some/model", data_dir, tmp_path)
    assert row.model.startswith("timm:test_resnet")
    file = timm_folder / "model.safetensors"
    assert train(row.model, data_dir, tmp_path, weights=file).run == row.run  # named by content
    predictor = stl10bench.load(tmp_path / "runs" / row.run)  # without the hub
    wanted = timm.create_model(f"local-dir:{timm_folder}", pretrained=True).state_dict()
    weights = predictor.model.get_submodule("backbone").state_dict()
    assert all(weights[key].equal(wanted[key]) for key in weights)
    config = json.loads((timm_folder / "config.json").read_text())
    del config["model_args"]  # as older versions of timm write it: then none is built to name it
    hub.repositories["some/model"]["config.json"] = json.dumps(config).encode()
    monkeypatch.setattr(timm, "create_model", None)
    assert hub_files.find_model("hf-hub:some/model").model == row.model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": None}, "some/model is no timm model: its config.json has no arch"),
        ({"architecture": "no_such_net"}, "unknown timm model 'no_such_net'"),
        (
            {"model_args": {"stem_type": "deep"}},
            "changes its architecture by {'stem_type': 'deep'}",
        ),
        ({"model_args": {"global_pool": "max"}}, "changes its architecture by {'global_pool'"),
        ({"mean": [0.1, 0.2, 0.3]}, r"normalises by mean \[0.1, 0.2, 0.3\].*--plugin"),
    ],
)
def test_a_model_that_its_architectures_name_does_not_describe_is_refused(
    hub: Hub,
    data_dir: Path,
    tmp_path: Path,
    timm_folder: Path,
    change: dict[str, Any],
    message: str,
) -> None:
    config = json.loads((timm_folder / "config.json").read_text())
    (config["pretrained_cfg"] if "mean" in change else config).update(change)
    hub.repositories["some/model"]["config.json"] = json.dumps(config).encode()
    with pytest.raises(UsageError, match=message):
        train("hf-hub:some/model", data_dir, tmp_path)
    assert not (tmp_path / "runs").exists()


_NET = '{"architecture": "test_resnet", '


def test_a_hostile_config_of_the_hub_is_one_short_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.json"
    monkeypatch.setattr(hub_files, "download", lambda *_, **__: file)
    for content in (
        *("[1]", "[" * 100_000, "x" * (2 << 20), '{"architecture": "*"}'),
        json.dumps({"architecture": "a" * 500_000}),
        *(_NET + part for part in ('"model_args": 5}', '"pretrained_cfg": []}', '"mean": "abc"}')),
        *(_NET + part for part in ('"std": [NaN, 1, 1]}', f'"mean": {[0.5] * 9999}' + "}")),
        _NET + f'"pretrained_cfg": {{"mean": {"[" * 800 + "]" * 800}, "tag": 1}}' + "}",
        _NET + f'"model_args": {{"global_pool": {"[" * 700 + "]" * 700}}}' + "}",
        _NET + json.dumps({"model_args": {"x" * 9999: "y" * 9999}})[1:],
        _NET + '"model_args": {"in_chans": -1}}',
        *(_NET + f'"stl10bench": {part}' + "}" for part in ("5", "{}", '{"config": []}')),
        _NET + '"stl10bench": {"config": {"model": 3}}}',
        _NET + '"stl10bench": {"config": {"model": "mlp", "model_options": {"a": {}}}}}',
    ):
        file.write_text(content)
        for load in (hub_files.find_model, hub_files.download_export):
            with pytest.raises(BenchError) as error:
                load("some/model")
            text = str(error.value)
            assert ("\n" in text, len(text) < 500) == (False, True), text[:900]


def test_where_a_name_of_the_hub_is_no_model_the_error_says_what_to_pass(
    cli: Any, data_dir: Path
) -> None:
    code, _, err = cli("benchmark", "hf-hub:some/model", "--data-dir", str(data_dir))
    assert (code, err.count("\n")) == (2, 1)
    assert "timm:NAME, with --weights hf-hub:some/model" in err


@pytest.mark.parametrize("model", ["mlp", "timm:test_resnet"])
def test_what_is_pushed_is_loaded_evaluated_and_trained_from_the_hub(
    hub: Hub, cli: Any, data_dir: Path, tmp_path: Path, model: str
) -> None:
    scratch = {"pretrained": False, "freeze": False} if model != "mlp" else {}
    source = tmp_path / "runs" / str(train(model, data_dir, tmp_path, **scratch).checkpoint)
    code, out, err = cli("export", str(source), "--to", "hub", "--push", "me/net", "--private")
    assert code == 0, err
    assert "pushed to hf-hub:me/net, private if new:" in out
    assert hub.created["visibility"] == "private"
    files = hub.repositories["me/net"]
    assert {"model.safetensors", "config.json", "README.md"} <= files.keys()
    config = json.loads(files["config.json"])
    assert config["label_names"] == config["class_names"] == list(NAMES)
    assert 'stl10bench.load("hf-hub:me/net")' in hub.cards[0]

    photo = tmp_path / "photo.png"
    Image.new("RGB", (40, 40), "red").save(photo)
    names = ("hf-hub:me/net", str(source))
    found, expected = (json.loads(cli("predict", n, str(photo), "--json")[1]) for n in names)
    assert found["images"] == expected["images"]
    rest = ("--data-dir", str(data_dir), "--json")
    found, expected = (json.loads(cli("evaluate", n, *rest)[1]) for n in names)
    assert found["test_loss"] == expected["test_loss"]
    options = {key: value for key, value in TINY.items() if key != "hidden"}  # the hub knows it
    where = {"data_dir": data_dir, "runs_dir": tmp_path / "from-hub"}
    row = stl10bench.train("hf-hub:me/net", **options, **where)
    assert row.model == model
    if model.startswith("timm:"):  # and timm alone takes the backbone
        net = timm.create_model("hf-hub:me/net", pretrained=True)
        assert tuple(net.pretrained_cfg["label_names"]) == NAMES


def test_the_card_is_what_the_hubs_own_classes_read(hub: Hub, tmp_path: Path) -> None:
    source = save(tmp_path / "m.safetensors", "timm:test_resnet", 32, hidden=(4,))
    stl10bench.export(source, to="hub", output=tmp_path / "hub")
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    card.validate()
    assert hub.cards == [str(card)]
    assert card.data.library_name == "timm"
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_a_dry_run_lists_the_files_and_sends_nothing(
    hub: Hub, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(tmp_path / "m.safetensors")
    monkeypatch.delenv("HF_TOKEN")
    command = ("export", str(source), "--to", "hub", "--push", "me/net")
    code, out, err = cli(*command, "--dry-run", "--output", "kept")
    assert code == 0, err
    assert not (tmp_path / "kept").exists()
    assert out.startswith("would push to hf-hub:me/net:\n  README.md  ")
    assert "model.safetensors" in out
    assert not hub.repositories
    assert not hub.cards
    code, _, err = cli(*command)
    assert (code, "--push needs a token: set HF_TOKEN" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "hub", "--push", "net"), "--push net: must be OWNER/NAME"),
        (("--to", "hub", "--push", "a/b/c"), "--push a/b/c: "),
        (("--to", "onnx", "--push", "me/net"), "use --to hub, not --to onnx"),
        (("--to", "hub", "--dry-run"), "pass --push OWNER/NAME"),
        (("--to", "hub"), "Missing --output"),
    ],
)
def test_options_of_a_push_that_cannot_be_are_refused(
    cli: Any, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    code, _, err = cli("export", str(save(tmp_path / "m.safetensors")), *words)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (401, "401: no such repository, or private: set HF_TOKEN"),
        (404, "404: no such file, repository or revision"),
        (500, "500"),
        ("cut", "cannot download some/model/config.json"),
        ("sum", "config.json of some/model came with another checksum"),
    ],
)
@pytest.mark.usefixtures("timm_folder")
def test_a_download_that_fails_is_one_line_and_leaves_nothing_behind(
    hub: Hub, data_dir: Path, tmp_path: Path, fault: Any, message: str
) -> None:
    hub.fault = fault
    with pytest.raises(CheckpointError, match=message) as error:
        train("hf-hub:some/model", data_dir, tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()
    hub.fault = None
    assert hub_files.download("some/model", "config.json").is_file()


def test_a_download_that_fails_is_as_clear_for_weights_and_predictions(
    hub: Hub, data_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"no/thing/model.safetensors .*404.*--weights"):
        train("timm:test_resnet", data_dir, tmp_path, weights="hf-hub:no/thing")
    with pytest.raises(CheckpointError, match=r"no/thing/config.json .*404.*pass a check"):
        stl10bench.load("hf-hub:no/thing")
    hub.repositories["plain/timm"] = {"config.json": b'{"architecture": "resnet18"}'}
    with pytest.raises(CheckpointError, match="stl10bench train hf-hub:plain/timm"):
        stl10bench.load("hf-hub:plain/timm")
    with pytest.raises(UsageError, match="hf-hub:a/b/c"):
        stl10bench.load("hf-hub:a/b/c")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (401, r"refused me/net \(401.*set HF_TOKEN to a token that may write to me/net"),
        (500, r"refused me/net \(500.*try again later"),
        ("card", r"cannot push to me/net .*no such licence"),
    ],
)
def test_a_push_that_fails_is_one_line(hub: Hub, tmp_path: Path, fault: Any, message: str) -> None:
    source = save(tmp_path / "m.safetensors")
    hub.fault = fault
    with pytest.raises(StorageError, match=message) as error:
        export_and_push(source, "me/net")
    assert "\n" not in str(error.value)
    assert not hub.repositories.get("me/net")


def test_newer_weights_of_the_hub_are_taken_instead_of_the_cached_ones_unless_offline(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "net").mkdir()
    file = folder / "model.safetensors"
    for value in (1.0, 2.0):
        save_file({"a": torch.tensor([value])}, file)
        hub.serve_folder("me/net", folder)
        assert hub_files.download("me/net").read_bytes() == file.read_bytes()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", None)  # new in 1.0
    hub.fault = 500  # is not asked
    assert hub_files.download("me/net").read_bytes() == file.read_bytes()
