"""RunConfig and what else a run needs <-> Typer options."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel

from stl10bench.config import DEFAULT_RECIPE, DERIVED, RECIPES, Limits, RunConfig
from stl10bench.core.errors import unknown
from stl10bench.data.load import DATASETS
from stl10bench.models import registry
from stl10bench.training.job import Job

Specification = dict[str, tuple[Any, Any]]  # parameter -> its Annotated type, its default


def completing(values: Iterable[str]) -> Callable[[str], list[str]]:
    """What a shell offers for an incomplete word: those of `values` that begin with it."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


def _models(incomplete: str) -> list[str]:
    return completing([*registry.names(), registry.TIMM])(incomplete)


def _runs(context: typer.Context, incomplete: str) -> list[str]:
    """The names of the runs in the command's runs folder."""
    from stl10bench.results.run_folder import run_folders

    folders = run_folders(Path(context.params.get("runs_dir") or RUNS))
    return completing([folder.name for folder in folders])(incomplete)


def _checkpoints(incomplete: str) -> list[str]:
    """The checkpoints of the runs; a shell that is offered none offers files."""
    from stl10bench.results.run_folder import default_runs_dir, run_folders

    folders = run_folders(default_runs_dir())
    files = [file for folder in folders for file in (folder.best_file, folder.last_file)]
    return completing([str(file) for file in files if file.is_file()])(incomplete)


def choice(kind: str, values: Sequence[str], *names: str, help_text: str | None = None) -> Any:
    """An option that takes one of `values`; another is a UsageError that names the nearest."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in values:
            raise unknown(kind, value, values)
        return value

    help_text = help_text or f"{', '.join(values[:-1])} or {values[-1]}."
    return typer.Option(*names, help=help_text, callback=check, autocompletion=completing(values))


def option(
    kind: Any,
    help_text: str,
    default: Any = None,
    *,
    panel: str | None = None,
    values: Sequence[str] = (),
    **extra: Any,
) -> tuple[Any, Any]:
    """An option of type `kind`: its annotation for Typer, and its default."""
    described = typer.Option(
        help=help_text.replace("[", r"\["),
        rich_help_panel=panel,
        autocompletion=completing(values) if values else None,
        **extra,
    )
    return Annotated[kind | None if default is None else kind, described], default


def _field_options(
    model: type[BaseModel],
    panel: str | None,
    names: Iterable[str] = (),
    *,
    values_of: Mapping[str, Sequence[str]] = MappingProxyType({}),
    groups: Mapping[str, str] = MappingProxyType({}),
) -> Specification:
    """An option for each field of `model`, or for `names` alone; unset, the model decides.

    A field of `groups` begins a panel of its own.
    """
    specification: Specification = {}
    for name in names or [name for name in model.model_fields if name not in DERIVED]:
        field, panel = model.model_fields[name], groups.get(name, panel)
        kind: Any = field.annotation
        default, metavar, values = field.default, None, values_of.get(name, ())
        if get_origin(kind) is UnionType:  # X | None
            kind = get_args(kind)[0]
        if get_origin(kind) is Literal:
            kind, values = str, get_args(kind)
            metavar = "|".join(values)
        elif get_origin(kind) is tuple:
            kind, metavar = str, "LOW,HIGH"
            default = default and ",".join(f"{x:g}" for x in default)
        note = "" if default is None or names else f" [default: {default}]"
        help_text = f"{field.description}{note}"
        specification[name] = option(
            kind,
            help_text,
            panel=panel,
            values=values,
            metavar=metavar,
            envvar=_VARIABLES.get(name),
        )
    return specification


def load_plugin(module: str | None) -> None:
    """Import what --plugin names, if it was given."""
    if module is not None:
        registry.load_plugin(module)


MODEL = typer.Argument(help="A registered model, or timm:<any timm model>.", autocompletion=_models)
MODELS = typer.Argument(help="Models, or --all.", autocompletion=_models)
ModelOptions = Annotated[
    list[str] | None,
    typer.Option(
        help="Set an option of the model, e.g. channels=64,128,256,512; repeatable.",
        metavar="KEY=VALUE",
        rich_help_panel="Model",
    ),
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option(
        help="Set an option of the method, e.g. views=2 (probe) or k=20 (knn); repeatable.",
        metavar="KEY=VALUE",
        rich_help_panel="Model",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        help="Any setting, also an option of the model or method; repeatable.",
        metavar="KEY=VALUE",
    ),
]
_CHECKPOINT = "A run's name or folder, a checkpoint file, or a folder from 'export --to hub'."
Checkpoint = Annotated[Path, typer.Argument(help=_CHECKPOINT, autocompletion=_checkpoints)]
RunName = Annotated[
    str,
    typer.Argument(
        help="A run's name, its beginning, its folder, or a file in it.", autocompletion=_runs
    ),
]
RunNames = Annotated[
    list[str] | None,
    typer.Argument(
        help="Names of runs, their beginnings, folders, or files in them.", autocompletion=_runs
    ),
]
RunsDir = Annotated[
    Path, typer.Option(help="Folder that contains the runs.", envvar="STL10BENCH_RUNS")
]
Picture = Annotated[Path, typer.Option(help="File to write: .png, .svg or .jpg.")]
DataDir = Annotated[
    Path,
    typer.Option(
        help="Folder that contains stl10_binary/ (demo data: in its subfolder demo).",
        envvar="STL10BENCH_DATA",
        rich_help_panel="Data",
    ),
]
RUNS, DATA_DIR = Path("runs"), Path("data")

_VALUES = {
    "dataset": DATASETS,
    "device": ("auto", "cpu", "cuda", "mps"),
    "tracker": ("wandb", "tensorboard", "none"),
}


def _job_options(*names: str, panel: str | None = None) -> Specification:
    """Options of fields of Job, with their descriptions and defaults."""
    specification = _field_options(Job, panel, names, values_of=_VALUES)
    return {
        name: (kind, Job.model_fields[name].default) for name, (kind, _) in specification.items()
    }


_VARIABLES = {"weights": "STL10BENCH_WEIGHTS", "tracker": "STL10BENCH_TRACKER"}
_GROUPS = {  # of settings: the first field of each, and its heading
    "image_size": "Images and seed (the recipe overrides these defaults)",
    "epochs": "Optimization (the recipe overrides these defaults)",
    "label_smoothing": "Loss, gradients and averaging (the recipe overrides these defaults)",
    "brightness": "Augmentation (the recipe overrides these defaults)",
    "cache_views": "Features, test and precision (the recipe overrides these defaults)",
}

_model, _workers = (partial(option, panel=name) for name in ("Model", "Workers"))
DATA: Specification = {
    **_job_options("dataset", panel="Data"),
    "data_dir": (DataDir, DATA_DIR),
    **_job_options("verify", panel="Data"),
}
MACHINE = _job_options("device", "threads", panel="Machine")
PLUGIN = _job_options("plugin")
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
JSON: Specification = {"as_json": (_Json, False)}
TRAINING: Specification = {
    "recipe": option(
        str, f"Recipe of settings: {', '.join(RECIPES)}.", DEFAULT_RECIPE, values=tuple(RECIPES)
    ),
    "config": option(Path, "TOML or JSON file of settings, e.g. a run's config.json."),
    "set": (Settings, None),
    "runs_dir": (RunsDir, RUNS),
    **_job_options("tracker", "overwrite"),
    **PLUGIN,
    **DATA,
    **_job_options("download", panel="Data"),
    **MACHINE,
    **_job_options("compile", "deterministic", panel="Machine"),
    "freeze": _model(bool, "Freeze the backbone, or fine-tune all of it [default: freeze]."),
    "hidden": _model(str, "Widths of the hidden linear layers, e.g. 512,256."),
    "dropout": _model(float, "Dropout rate after each hidden linear layer."),
    "model_option": (ModelOptions, None),
    **_job_options("weights", panel="Model"),
    "pretrained": _model(
        bool, "Start a backbone from timm's pretrained weights (downloaded, or --weights).", True
    ),
    **_field_options(Limits, "Checkpoints and time"),
    **_field_options(RunConfig, None, groups=_GROUPS),
    **_field_options(RunConfig, "Model", ("method",)),
    "method_option": (MethodOptions, None),
}
WORKERS: Specification = {
    "workers": _workers(int, "Train N runs at once, each in its own process.", min=1, metavar="N"),
    "scheduler": _workers(
        str, "Running Dask scheduler: tcp://HOST:PORT or tls://HOST:PORT.", metavar="ADDRESS"
    ),
    "tls_ca": _workers(Path, "CA certificate of the Dask cluster (PEM)."),
    "tls_cert": _workers(Path, "Certificate of this machine (PEM)."),
    "tls_key": _workers(Path, "Private key of that certificate (PEM)."),
}


def with_options(
    *specifications: Specification,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of the specifications to a command that takes them, e.g. as `**options`."""

    options = {
        name: pair for specification in specifications for name, pair in specification.items()
    }

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = [
            parameter
            for parameter in inspect.signature(command).parameters.values()
            if parameter.name not in options and parameter.kind is not parameter.VAR_KEYWORD
        ]
        parameters += [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
            )
            for name, (kind, default) in options.items()
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate
