"""RunConfig and what else a run needs <-> Typer options."""

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel

from stl10bench.config import DEFAULT_RECIPE, MADE, RECIPES, Limits, RunConfig
from stl10bench.core.errors import UsageError
from stl10bench.data.load import DATASETS
from stl10bench.models import registry

Specification = dict[str, tuple[Any, Any]]  # parameter -> its Annotated type, its default


def completing(values: Iterable[str]) -> Callable[[str], list[str]]:
    """What a shell offers for an incomplete word: those of `values` that begin with it."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


def _models(incomplete: str) -> list[str]:
    return [name for name in [*registry.names(), registry.TIMM] if name.startswith(incomplete)]


MODEL = typer.Argument(help="A registered model, or timm:<any timm model>.", autocompletion=_models)
MODELS = typer.Argument(help="Models, or --all.", autocompletion=_models)


def _field_options(model: type[BaseModel], panel: str) -> Specification:
    """An option for each field of `model`; unset, a recipe or the field's default decides."""
    specification: Specification = {}
    for name, field in model.model_fields.items():
        if name in MADE:
            continue
        kind: Any = field.annotation
        metavar, values = None, ()
        if get_origin(kind) is Literal:
            kind, values = str, get_args(kind)
            metavar = "|".join(values)
        elif get_origin(kind) is tuple:
            kind, metavar = str, "LOW,HIGH"
        default = field.default
        if get_origin(kind) is UnionType:  # X | None
            kind = get_args(kind)[0]
        shown = ",".join(f"{x:g}" for x in default) if isinstance(default, tuple) else default
        note = "" if default is None else f" [default: {shown}]"
        option = typer.Option(
            help=f"{field.description}{note}".replace("[", r"\["),
            metavar=metavar,
            show_default=False,
            autocompletion=completing(values) if values else None,
            rich_help_panel=panel,
        )
        specification[name] = (Annotated[kind | None, option], None)
    return specification


def _option(
    kind: Any, help_text: str, default: Any = None, *names: str, **extra: Any
) -> tuple[Any, Any]:
    annotation = kind | None if default is None else kind
    help_text = help_text.replace("[", r"\[")
    return Annotated[annotation, typer.Option(*names, help=help_text, **extra)], default


_OF_DATA, _OF_MACHINE = "Data", "Machine"
DATA: Specification = {
    "dataset": _option(
        str,
        "stl10, or demo: images drawn by code.",
        "stl10",
        autocompletion=completing(DATASETS),
        rich_help_panel=_OF_DATA,
    ),
    "data_dir": _option(
        Path,
        "Folder that holds stl10_binary/ (demo data: in its subfolder demo).",
        Path("data"),
        envvar="STL10BENCH_DATA",
        rich_help_panel=_OF_DATA,
    ),
    "verify": _option(
        bool, "Hold STL-10's files to their official MD5 sums.", True, rich_help_panel=_OF_DATA
    ),
}
MACHINE: Specification = {
    "device": _option(
        str,
        "auto, cpu, cuda or mps.",
        "auto",
        autocompletion=completing(("auto", "cpu", "cuda", "mps")),
        rich_help_panel=_OF_MACHINE,
    ),
    "threads": _option(
        int,
        "CPU threads per process [default: cores / processes].",
        min=1,
        rich_help_panel=_OF_MACHINE,
    ),
}
PLUGIN: Specification = {
    "plugin": _option(str, "Import a module that registers models; the working folder counts."),
}
_MODEL_OPTIONS: Specification = {
    "freeze": _option(
        bool, "Train the head alone, or all of a backbone [default: freeze].", None,
        "--freeze/--no-freeze", rich_help_panel="Model",
    ),
    "hidden": _option(
        str, "Widths of the hidden linear layers, e.g. 512,256.", rich_help_panel="Model"
    ),
    "dropout": _option(float, "Dropout after each hidden linear layer.", rich_help_panel="Model"),
    "model_option": _option(
        list[str], "Any option of the model, e.g. channels=64,128,256,512; repeatable.",
        None, metavar="KEY=VALUE", rich_help_panel="Model",
    ),
    "weights": _option(
        Path, "The backbone's weights: safetensors in timm's keys.", rich_help_panel="Model"
    ),
    "pretrained": _option(
        bool, "Start a backbone from timm's weights (from the hub, unless --weights).", True,
        rich_help_panel="Model",
    ),
}  # fmt: skip
_RUN: Specification = {
    "recipe": _option(
        str,
        f"Named settings: {', '.join(RECIPES)}.",
        DEFAULT_RECIPE,
        autocompletion=completing(RECIPES),
    ),
    "config": _option(Path, "JSON file of settings, e.g. a run's config.json."),
    "runs_dir": _option(Path, "Folder of the run folders.", Path("runs")),
    "tracker": _option(
        str,
        "wandb (offline without a key), tensorboard or none.",
        "wandb",
        autocompletion=completing(("wandb", "tensorboard", "none")),
    ),
    "download": _option(bool, "Fetch STL-10 when it is missing.", False, rich_help_panel=_OF_DATA),
    "compile": _option(
        bool,
        "Compile the step with torch.compile: minutes first, then perhaps faster.",
        False,
        rich_help_panel=_OF_MACHINE,
    ),
    "deterministic": _option(
        bool,
        "Only kernels that give the same bits each time (matters on GPUs).",
        False,
        rich_help_panel=_OF_MACHINE,
    ),
    "overwrite": _option(bool, "Train again; the old run folder is moved aside.", False),
}
TRAINING: Specification = {
    **_RUN, **DATA, **MACHINE, **PLUGIN, **_MODEL_OPTIONS,
    **_field_options(Limits, "Checkpoints and time"),
    **_field_options(RunConfig, "Settings (the recipe's, unless given)"),
}  # fmt: skip
_ENGINE = "Workers"
WORKERS: Specification = {
    "workers": _option(
        int,
        "Runs to train at once, each in a process of its own.",
        min=1,
        metavar="N",
        rich_help_panel=_ENGINE,
    ),
    "scheduler": _option(
        str,
        "A Dask scheduler whose workers train: tcp://HOST:PORT or tls://HOST:PORT.",
        metavar="ADDRESS",
        rich_help_panel=_ENGINE,
    ),
    "tls_ca": _option(Path, "CA certificate of the scheduler (PEM).", rich_help_panel=_ENGINE),
    "tls_cert": _option(Path, "Our certificate (PEM).", rich_help_panel=_ENGINE),
    "tls_key": _option(Path, "Our certificate's key (PEM).", rich_help_panel=_ENGINE),
}
JSON: Specification = {
    "as_json": _option(bool, "Print one JSON object to stdout.", False, "--json"),
}


def with_options(
    *specifications: Specification,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command that ends in `**options` the options of the specifications."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command).parameters.values()
        parameters = {p.name: p for p in own if p.kind is not p.VAR_KEYWORD}
        for specification in specifications:
            for name, (kind, default) in specification.items():
                parameters[name] = inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
                )
        command.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
        command.__annotations__ = {name: p.annotation for name, p in parameters.items()}
        return command

    return decorate


def settings(options: dict[str, Any]) -> dict[str, Any]:
    """What a command was given -> the keywords of `api.train`; unset options are left out."""
    given = {key: value for key, value in options.items() if value is not None}
    load_plugin(given.pop("plugin", None))
    stored: dict[str, Any] = {}
    if path := given.pop("config", None):
        from stl10bench.core.files import read_json

        stored = {
            key: value
            for key, value in read_json(path, UsageError).items()
            if key not in {"model", "data", "weights"}
        }
        if not isinstance(stored.get("model_options", {}), dict):
            raise UsageError(f"{path}: model_options must be an object, e.g. {{}}")
    if "rotation" in given:
        given["rotation"] = tuple(given["rotation"].split(","))
        if len(given["rotation"]) != 2:
            raise UsageError(f"rotation = {options['rotation']}: must be LOW,HIGH, e.g. 0,20")
    own = key_values(given.pop("model_option", None))
    return {**stored, **given, **own}


def key_values(pairs: list[str] | None) -> dict[str, str]:
    """--model-option's pairs; raises UsageError for one without an equals sign."""
    for pair in pairs or []:
        if "=" not in pair:
            raise UsageError(f"--model-option {pair}: must be KEY=VALUE, e.g. dropout=0.5")
    return dict(pair.split("=", 1) for pair in pairs or [])


def load_plugin(module: str | None) -> None:
    """Import what --plugin names, if it was given."""
    if module is not None:
        registry.load_plugin(module)
