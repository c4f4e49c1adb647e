"""Where settings come from: options, --set, files, the environment, recipes, defaults."""

import json
from pathlib import Path
from typing import Any

import pytest

from stl10bench.cli.config import settings_schema
from stl10bench.cli.options import TRAINING
from stl10bench.core.errors import UsageError
from stl10bench.studies import plan

SMALL = {"image_size": 8, "epochs": 1, "batch_size": 8, "threads": 1, "tracker": "none"}


def shown(cli: Any, *arguments: str) -> dict[str, tuple[Any, str]]:
    """Each setting's value and source, of `config show`."""
    code, out, err = cli("config", "show", *arguments, "--json")
    assert code == 0, err + out
    return {key: (s["value"], s["source"]) for key, s in json.loads(out)["settings"].items()}


def test_an_option_beats_set_beats_the_file_beats_the_environment_beats_the_recipe(
    cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(cli, "mlp")["tracker"] == ("wandb", "default")
    assert shown(cli, "mlp")["lr"] == (0.0003, "recipe tuned")
    monkeypatch.setenv("STL10BENCH_TRACKER", "tensorboard")
    assert shown(cli, "mlp")["tracker"] == ("tensorboard", "STL10BENCH_TRACKER")
    Path("mine.toml").write_text('tracker = "none"\nlr = 0.5\nhidden = [16]\nflip = 0\n')
    words = ["mlp", "--config", "mine.toml"]
    settings = shown(cli, *words)
    assert settings["tracker"] == ("none", "mine.toml")
    assert settings["hidden"] == ([16], "mine.toml")
    words += ["--set", "lr=0.25", "--set", "hidden=8,4", "--set", "rotation=0,5"]
    settings = shown(cli, *words)
    assert settings["lr"] == (0.25, "--set")
    assert settings["hidden"] == ([8, 4], "--set")
    assert settings["rotation"] == ([0.0, 5.0], "--set")
    settings = shown(cli, *words, "--lr", "0.125", "--model-option", "hidden=2")
    assert settings["lr"] == (0.125, "--lr")
    assert settings["hidden"] == ([2], "--model-option")
    assert settings["flip"] == (0.0, "mine.toml")
    assert settings["model"] == ("mlp", "argument")


def test_few_labels_are_the_source_of_no_validation_images(cli: Any) -> None:
    assert shown(cli, "mlp", "--set", "labels-per-class=5")["val_fraction"] == (
        0.0,
        "labels_per_class",
    )
    assert shown(cli, "mlp", "--fold", "0")["val_fraction"] == (0.0, "fold")


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_a_run_needs_nothing_but_a_file(cli: Any, data_dir: Path, suffix: str) -> None:
    """Written by hand, or by `wandb sweep` in place of ${args_json_file}."""
    values = {"model": "mlp", "recipe": "quick", "data_dir": str(data_dir), "hidden": [8], **SMALL}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    text = "\n".join(lines) if suffix == "toml" else json.dumps(values)
    Path(f"mine.{suffix}").write_text(text)
    code, out, err = cli("train", "--config", f"mine.{suffix}", "--json")
    assert code == 0, err
    row = json.loads(out)
    assert (row["model"], row["model_options"]["hidden"], row["epochs"]) == ("mlp", [8], 1)
    assert row["config"]["weight_decay"] == 0, "of the recipe quick"


@pytest.mark.parametrize(
    ("name", "text", "words", "message"),
    [
        ("a.toml", "lrr = 0.1", "", "a.toml: unknown setting lrr = 0.1: did you mean 'lr'?"),
        ("a.json", '{"learning_rate": 1}', "", "a.json: unknown setting learning_rate = 1: did"),
        ("a.json", '{"model_options": {"hiden": 1}}', "", "a.json: unknown setting hiden = 1: did"),
        ("a.toml", "zzz = 1", "", "zzz = 1: 'stl10bench config schema' lists all settings"),
        ("a.toml", "views = 2", "", "unknown setting views = 2: it needs method = 'probe'"),
        ("a.toml", 'data = "/photos"', "", "unknown setting data = '/photos': did you mean"),
        ("a.toml", 'lr = "fast"', "", "a.toml: lr = 'fast': must be a number"),
        ("a.toml", "threads = 0", "", "a.toml: threads = 0: must be greater than or equal to 1"),
        ("a.toml", 'pretrained = "so"', "", "a.toml: pretrained = 'so': must be true or false"),
        ("a.toml", "lr = ", "", "a.toml is not TOML: "),
        ("a.yaml", "lr: 1", "", "a.yaml: settings are read from TOML or JSON, not YAML"),
        ("a.toml", 'model = "cnn"', "", "a.toml contains the settings of cnn, not of mlp: name"),
        ("a.toml", "", "--set lrr=1", "--set: unknown setting lrr = '1': did you mean 'lr'?"),
        ("a.toml", "", "--set lr", "--set lr: must be KEY=VALUE"),
        ("a.toml", "", "--set epochs=0", "--set: epochs = '0': must be greater than or equal to 1"),
    ],
)
def test_what_is_no_setting_is_told_with_its_value_and_its_source(
    cli: Any, name: str, text: str, words: str, message: str
) -> None:
    Path(name).write_text(text)
    code, out, err = cli("train", "mlp", "--config", name, *words.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_options_of_a_method_are_added_by_name_to_those_of_a_file(cli: Any) -> None:
    Path("a.json").write_text('{"method": "probe", "method_options": {"views": 2, "power": 1}}')
    words = ("mobilenetv2", "--config", "a.json", "--weights", "w.safetensors")
    Path("w.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    assert shown(cli, *words, "--method-option", "power=0.5")["views"] == (2, "a.json")
    assert shown(cli, *words, "--set", "power=0.25")["power"] == (0.25, "--set")


def test_random_and_given_weights_are_one_choice(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said last counts; a run's config says random ones, or names a file's content."""
    Path("w.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    monkeypatch.setenv("STL10BENCH_WEIGHTS", "w.safetensors")
    assert shown(cli, "mlp")["weights"] == ("none", "default"), "not for it: it has no backbone"
    value, source = shown(cli, "mobilenetv2")["weights"]
    assert (value[:7], source) == ("sha256:", "STL10BENCH_WEIGHTS")
    scratch = ("mobilenetv2", "--no-freeze")
    assert shown(cli, *scratch, "--no-pretrained")["weights"] == ("none", "--no-pretrained")
    Path("random.json").write_text('{"model": "mobilenetv2", "weights": "none"}')
    words = (*scratch, "--config", "random.json")
    assert shown(cli, *words)["weights"] == ("none", "random.json")
    assert shown(cli, *words, "--weights", "w.safetensors")["weights"] == (value, "--weights")
    Path("W.JSON").write_text('{"weights": "w.safetensors"}')
    code, _, err = cli("config", "show", "mlp", "--config", "W.JSON")
    assert (code, "model 'mlp' has no backbone" in err) == (2, True), "for it, unlike a variable's"
    Path("named.json").write_text('{"model": "mobilenetv2", "weights": "sha256:12ab"}')
    code, _, err = cli("train", "--config", "named.json")
    assert code == 2
    assert "starts from weights sha256:12ab: pass --weights FILE" in err


def test_benchmarks_and_studies_take_files_and_set(cli: Any) -> None:
    Path("a.toml").write_text('dataset = "moon"')
    for words in (
        ("benchmark", "mlp", "--config", "a.toml"),
        ("study", "run", "logistic-lr", "--set", "dataset=moon"),
    ):
        code, _, err = cli(*words, "--dry-run")
        assert (code, err) == (2, "error: unknown dataset 'moon': did you mean 'demo'?\n"), words
    code, _, err = cli("study", "run", "logistic-lr", "--set", "lrr=1", "--dry-run")
    assert (code, "unknown logistic setting 'lrr': did you mean 'lr'?" in err) == (2, True)
    words = ("study", "run", "--model", "mlp", "--vary", "lr=1,2", "--set", "model=cnn")
    code, _, err = cli(*words, "--dry-run")
    assert (code, "--set contains the settings of cnn, not of mlp" in err) == (2, True)


def test_text_is_as_good_as_a_value_and_null_as_none(
    cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def open_data(*_: object, **options: Any) -> None:
        asked.update(options)
        raise UsageError("enough")

    monkeypatch.setattr(plan, "open_data", open_data)
    words = ("study", "run", "logistic-lr", "--set", "download=false", "--dry-run")
    assert cli(*words)[2] == "error: enough\n"
    assert asked["download"] is False
    Path("a.json").write_text('{"recipe": null, "tracker": "none"}')
    assert shown(cli, "mlp", "--config", "a.json")["recipe"] == ("tuned", "default")


def test_the_schema_has_every_setting_of_train() -> None:
    schema = settings_schema()
    carriers = {"config", "set", "model_option", "method_option"}
    assert TRAINING.keys() - carriers <= schema["properties"].keys()
    assert {"channels", "views", "k", "model", "model_options"} <= schema["properties"].keys()
    assert all(described["description"] for described in schema["properties"].values())
    assert schema["additionalProperties"] is False
    both = schema["properties"]["k"]
    assert [kind["default"] for kind in both["anyOf"]] == [20, 10]
    assert "(knn)" in both["description"]
    assert "(label-spreading)" in both["description"]


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_one_line(cli: Any, option: str) -> None:
    code, out, _ = cli(option)
    assert (code, out.split()[0]) == (0, "stl10bench")
