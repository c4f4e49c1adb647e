"""Names and options of models: what is registered, what is refused, and what a plug-in can do."""

import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.layout import heavy_after

from stl10bench.config import make_config
from stl10bench.core.errors import UsageError
from stl10bench.models import registry
from stl10bench.models.factory import (
    build_model,
    changed_options,
    check_freeze,
    check_options,
    get_builder,
)
from stl10bench.training.job import make_job, read_job, write_job

PLUGIN = '''
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from stl10bench import register


@register
def {name}(
    num_classes: int,
    image_size: int,
    *,
    width: Annotated[int, Field(ge=1)] = 4,
    act: Literal["relu", "gelu"] = "relu",
    scale: float = 1.0,
    norm: bool = False,
) -> nn.Module:
    """A plug-in."""
    layer = {{"relu": nn.ReLU, "gelu": nn.GELU}}[act]()
    size = 3 * image_size**2
    return nn.Sequential(nn.Flatten(), nn.Linear(size, width), layer, nn.Linear(width, num_classes))
'''


pytestmark = pytest.mark.usefixtures("forgetful")


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the working folder that registers a model `my_net`."""
    (tmp_path / "my_plugin.py").write_text(PLUGIN.format(name="my_net"))
    monkeypatch.chdir(tmp_path)
    return "my_plugin"


def test_the_models_of_the_report_are_there() -> None:
    names = ["logistic", "mlp", "cnn", "resnet9", "kmeans", "mobilenetv2"]
    assert registry.names()[:6] == names


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("mobilnet", "mobilenetv2"),
        ("mobilenet_v2", "mobilenetv2"),
        ("logistics", "logistic"),
        ("MLP", "mlp"),
        ("cn", "cnn"),
        ("", None),
        ("resnet18", "timm:resnet18"),
        ("mobilenetv3_small_100", "timm:mobilenetv3_small_100"),
        ("resnet999", "resnet9"),
        ("../x", None),
    ],
)
def test_an_unknown_model_says_the_nearest_or_all(name: str, nearest: str | None) -> None:
    with pytest.raises(UsageError) as error:
        registry.check_name(name)
    text = str(error.value)
    assert text.startswith(f"unknown model {name!r}: ")
    hint = (
        f"did you mean {nearest!r}?"
        if nearest
        else "known: cnn, kmeans, logistic, mlp, mobilenetv2"
    )
    assert hint in text
    assert error.value.exit_code == 2
    with pytest.raises(UsageError):
        build_model(name, 10, 64, {})


@pytest.mark.parametrize("name", ["timm:", "timm"])
def test_timm_alone_names_no_model(name: str) -> None:
    with pytest.raises(UsageError):
        registry.check_name(name)


def test_a_misspelt_timm_model_says_the_nearest() -> None:
    with pytest.raises(
        UsageError, match=r"'mobilenetv3_larg_100': did you mean 'mobilenetv3_large_100'"
    ):
        build_model("timm:mobilenetv3_larg_100", 10, 64, {})


def test_other_names_of_timm_say_a_few_near_ones_or_where_they_are_listed() -> None:
    for name, text in (
        ("resnet18.a1_in1", "did you mean 'resnet18.a1_in1k' or "),
        ("resnet18.zzz", "did you mean 'resnet18."),
        ("ResNet18", "did you mean 'resnet18' or "),
        ("zzzzqq", "timm.list_models() lists all 1,"),
    ):
        with pytest.raises(UsageError) as error:
            get_builder(f"timm:{name}")
        assert str(error.value).startswith(f"unknown timm model '{name}': {text}")
        assert len(str(error.value)) < 200


def test_a_size_that_a_backbone_cannot_take_is_answered_with_the_nearest_that_it_can() -> None:
    with pytest.raises(UsageError, match=r"image_size = 50: .* evenly.; use --image-size 64$"):
        build_model("timm:nest_tiny", 10, 50, {})
    with pytest.raises(UsageError, match=r"image_size = 250: .*; use --image-size 256$"):
        build_model("timm:nest_tiny", 10, 250, {})


# Registering.


def test_a_name_can_be_registered_once_only() -> None:
    def my_model(num_classes: int, image_size: int) -> Any: ...

    assert registry.register(my_model) is my_model
    with pytest.raises(UsageError, match="'my_model' is registered already: rename"):
        registry.register(my_model)


@pytest.mark.parametrize("loaded", [True, False])
def test_a_built_in_name_cannot_be_taken(loaded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def cnn(num_classes: int, image_size: int) -> Any: ...

    if loaded:
        get_builder("cnn")
    else:
        monkeypatch.delitem(registry._registered, "cnn", raising=False)
    with pytest.raises(UsageError, match="'cnn' is registered already"):
        registry.register(cnn)
    assert registry._registered.get("cnn") is not cnn


def test_in_a_notebook_a_new_definition_replaces_the_old_one() -> None:
    from torch import nn

    def define(width: int) -> Any:
        def my_model(num_classes: int, image_size: int) -> Any:
            return nn.Linear(width, 1)

        my_model.__module__ = "__main__"
        return registry.register(my_model)

    define(1)
    define(2)
    assert build_model("my_model", 10, 8, {}).in_features == 2


def test_a_plugin_in_the_working_folder_gives_a_model_as_good_as_ours(plugin: str) -> None:
    import torch

    registry.load_plugin(plugin)
    names = ["logistic", "mlp", "cnn", "resnet9", "kmeans", "mobilenetv2", "my_net"]
    assert registry.names() == names
    assert registry.backbone_name("my_net") is None
    model = build_model("my_net", 5, 8, {"width": "3", "act": "gelu"})
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 5)
    checked = check_options("my_net", {"width": "3", "norm": "true", "scale": "1e-3"})
    assert checked == {"width": 3, "act": "relu", "scale": 0.001, "norm": True}
    with pytest.raises(UsageError, match=r"option act = 'tanh' of model 'my_net': .*'relu'"):
        check_options("my_net", {"act": "tanh"})


def test_a_plugin_can_be_loaded_twice(plugin: str) -> None:
    registry.load_plugin(plugin)
    registry.load_plugin(plugin)
    assert registry.names().count("my_net") == 1


def test_a_plugin_that_takes_our_name_is_refused(tmp_path: Path, plugin: str) -> None:
    (tmp_path / "my_thief.py").write_text(PLUGIN.format(name="mlp"))
    with pytest.raises(UsageError, match="'mlp' is registered already"):
        registry.load_plugin("my_thief")


def test_two_plugins_with_one_name_are_refused(tmp_path: Path, plugin: str) -> None:
    (tmp_path / "my_second.py").write_text(PLUGIN.format(name="my_net"))
    registry.load_plugin(plugin)
    with pytest.raises(UsageError, match="'my_net' is registered already"):
        registry.load_plugin("my_second")


@pytest.mark.parametrize("parts", ["my_file.py", "my_package/__init__.py"])
@pytest.mark.parametrize("form", ["name", "path", "absolute path", "from beside"])
def test_a_plugin_is_a_file_or_a_package_folder_named_in_any_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: str, form: str
) -> None:
    file = tmp_path / "models" / parts
    file.parent.mkdir(parents=True)
    (file.parent / "my_layers.py").write_text("WIDTH = 3\n")  # a plug-in may import its neighbours
    package = file.name == "__init__.py"
    place = "from .my_layers" if package else "from my_layers"
    file.write_text(PLUGIN.format(name="my_net") + f"\n{place} import WIDTH\n")
    target = file.parent if package else file
    beside = tmp_path / "beside"
    beside.mkdir()
    monkeypatch.chdir(beside if form == "from beside" else target.parent)
    plugin = {
        "name": target.name.removesuffix(".py"),
        "path": target.name,
        "absolute path": str(target),
        "from beside": f"../models/{target.name}",
    }[form]
    assert registry.find_plugin(plugin) == str(target)
    registry.load_plugin(plugin)
    assert "my_net" in registry.names()
    registry.load_plugin(str(target))  # the same, by another name


def test_a_dash_in_a_plugins_name_is_no_matter_but_a_dot_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_a-net.py").write_text(PLUGIN.format(name="my_net"))
    (tmp_path / "my_b.net.py").write_text(PLUGIN.format(name="my_other"))
    monkeypatch.chdir(tmp_path)
    registry.load_plugin("my_a-net.py")
    assert "my_net" in registry.names()
    with pytest.raises(UsageError, match="cannot import a name with a dot"):
        registry.load_plugin("my_b.net.py")


def test_a_job_finds_its_plugin_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugin: str
) -> None:
    config = make_config({"model": "my_net"})
    write_job(tmp_path / "job", make_job(config, plugin=plugin))
    monkeypatch.chdir("/")
    job = read_job(tmp_path / "job")
    assert job.plugin == str(tmp_path / "my_plugin.py")
    assert job.config == config
    assert make_job(config, plugin="a_module").plugin == "a_module"


def test_a_plugin_that_is_called_like_another_module_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text(PLUGIN.format(name="my_net"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UsageError, match=r"another module has the name 'json' .*: rename the plugin"
    ):
        registry.load_plugin("json.py")


@pytest.mark.parametrize(
    "module",
    [
        "my_absent",
        "my_absent.part",
        "json.py.py",
        "my_absent.py",
        "../my_absent",
        "my-absent",
        "",
        ".",
        "/",
    ],
)
def test_a_plugin_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        registry.load_plugin(module)
    assert str(error.value).startswith(f"no plugin {module!r}: there is no file ")
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("plugin", ["my_model", "my_model.py", "plugins/my_model.py"])
def test_a_plugin_that_is_not_there_is_told_with_the_nearest_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugin: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(plugin).parent
    folder.mkdir(exist_ok=True)
    (folder / "my_models.py").write_text("")
    file = folder / "my_model.py"
    told = (
        f"no plugin {plugin!r}: there is no file {file}: did you mean '{folder / 'my_models.py'}'"
    )
    with pytest.raises(UsageError) as error:
        registry.load_plugin(plugin)
    assert str(error.value).startswith(told)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import a_missing_module", "ModuleNotFoundError: No module named 'a_missing_module'"),
        ("def (", r"SyntaxError: invalid syntax \(my_broken.py, line 1\); -v shows"),
        ("\n1/0", r"ZeroDivisionError: division by zero \(.*my_broken.py, line 2\); -v shows"),
        ("raise SystemExit(3)", r"SystemExit: 3 \(.*my_broken.py, line 1\)"),
        ("import argparse\nargparse.ArgumentParser().parse_args(['x'])", "SystemExit: 2"),
    ],
)
def test_what_goes_wrong_in_a_plugin_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, text: str
) -> None:
    (tmp_path / "my_broken.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"--plugin my_broken cannot be imported: {text}"):
        registry.load_plugin("my_broken")


def install(folder: Path, name: str, target: str) -> None:
    """What pip leaves behind of a package with one entry point."""
    info = folder / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[stl10bench.models]\n{name} = {target}\n")


def test_an_installed_packages_entry_point_is_a_model(tmp_path: Path, plugin: str) -> None:
    install(tmp_path, "my_net", "my_plugin:my_net")
    sys.path.insert(0, str(tmp_path))
    assert registry.names()[-1] == "my_net"
    assert "my_plugin" not in sys.modules, "it is imported when it is asked for"
    registry.check_name("my_net")
    assert check_options("my_net", {"width": "2"})["width"] == 2


def test_an_entry_point_that_registers_nothing_is_told(tmp_path: Path, plugin: str) -> None:
    install(tmp_path, "my_other", "my_plugin")
    sys.path.insert(0, str(tmp_path))
    with pytest.raises(UsageError, match="'my_other' does not @register a function 'my_other'"):
        get_builder("my_other")


# Options.


@pytest.mark.parametrize(
    ("options", "checked"),
    [
        ({}, {"hidden": (512, 256, 128), "dropout": 0.0}),
        ({"hidden": "64,32"}, {"hidden": (64, 32), "dropout": 0.0}),
        ({"hidden": "64"}, {"hidden": (64,), "dropout": 0.0}),
        ({"hidden": "64, 32,"}, {"hidden": (64, 32), "dropout": 0.0}),
        ({"hidden": ""}, {"hidden": (), "dropout": 0.0}),
        ({"hidden": [64, 32]}, {"hidden": (64, 32), "dropout": 0.0}),
        ({"hidden": (64,), "dropout": 0.5}, {"hidden": (64,), "dropout": 0.5}),
        ({"dropout": "0.5"}, {"hidden": (512, 256, 128), "dropout": 0.5}),
        ({"dropout": "0"}, {"hidden": (512, 256, 128), "dropout": 0.0}),
    ],
)
def test_options_come_as_values_or_as_words(
    options: dict[str, Any], checked: dict[str, Any]
) -> None:
    assert check_options("mlp", options) == checked


@pytest.mark.parametrize(
    ("word", "value"),
    [("true", True), ("false", False), ("no", False), ("1", True), (False, False)],
)
def test_freeze_is_a_boolean_or_a_word_for_one(word: Any, value: bool) -> None:
    assert check_freeze(word) is value
    assert check_options("mobilenetv2", {"freeze": word})["freeze"] is value


def test_a_freeze_that_is_neither_is_refused() -> None:
    with pytest.raises(UsageError, match="freeze = 'maybe': must be true or false"):
        check_freeze("maybe")


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("mlp", {"hiden": "3"}, "model 'mlp' has no option 'hiden': did you mean 'hidden'"),
        ("mlp", {"epoch": "3"}, "has no option 'epoch': did you mean 'epochs'"),
        ("logistic", {"learning_rate": 1}, "no option 'learning_rate': did you mean 'lr'"),
        ("mlp", {"n_epochs": 1}, "no option 'n_epochs': did you mean 'epochs'"),
        ("mlp", {"imgsz": 1}, "no option 'imgsz': did you mean 'image_size'"),
        ("mlp", {"zzz": "3"}, "has no option 'zzz': it has hidden, dropout"),
        (
            "logistic",
            {"zzz": 1},
            "'logistic' has no option 'zzz': it has no options of its own",
        ),
        ("mlp", {"hidden": "512,a"}, "option hidden = 'a' of model 'mlp': .*integer"),
        (
            "mlp",
            {"hidden": "0"},
            "option hidden = '0' of model 'mlp': .*greater than or equal to 1",
        ),
        ("mlp", {"hidden": "-5"}, "option hidden = '-5'"),
        ("mlp", {"hidden": 5}, "option hidden = 5 of model 'mlp'"),
        ("mlp", {"dropout": "1"}, "option dropout = '1' of model 'mlp': .*less than 1"),
        ("mlp", {"dropout": -0.1}, "option dropout = -0.1 .*greater than or equal to 0"),
        ("mlp", {"dropout": "nan"}, "option dropout = 'nan'"),
        ("cnn", {"channels": "4,x"}, "option channels = 'x' of model 'cnn'"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_value_and_rule(
    name: str, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(UsageError, match=text) as error:
        check_options(name, options)
    assert "\n" not in str(error.value)


def test_options_of_too_many_parts_are_refused() -> None:
    with pytest.raises(UsageError, match="hidden of model 'mlp': 1001 entries; the limit is 1000"):
        check_options("mlp", {"hidden": [8] * 1001})
    with pytest.raises(UsageError, match="500000 entries; the limit is 1000"):
        check_options("mlp", {"hidden": "8," * 500_000})
    with pytest.raises(UsageError) as error:
        check_options("mlp", {"dropout": "y" * 100_000})
    assert len(str(error.value)) < 500


def test_only_changed_options_are_part_of_a_config() -> None:
    changed = changed_options("mlp", {"hidden": "512,256,128", "dropout": "0.5"})
    assert changed == {"dropout": 0.5}
    assert changed_options("mobilenetv2", {"freeze": "true"}) == {}


@pytest.mark.parametrize("name", [*registry.names(), "timm:resnet18"])
def test_every_option_of_a_model_has_a_default_that_fits(name: str) -> None:
    defaults = check_options(name, {})
    assert check_options(name, defaults) == defaults
    assert changed_options(name, defaults) == {}


def test_names_are_listed_and_checked_without_importing_torch() -> None:
    code = (
        "from stl10bench.models import registry; registry.names(); registry.check_name('cnn'); "
        "registry.check_name('timm:x'); from stl10bench.models import factory; "
        "factory.check_freeze('no')"
    )
    assert heavy_after(code) == "[]"
