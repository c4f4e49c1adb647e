"""RunConfig and what else a run needs <-> Typer options."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel

from stl10bench.config import DEFAULT_RECIPE, DERIVED, RECIPES, SELF_SUPERVISED, Limits, RunConfig
from stl10bench.core.errors import UsageError, unknown
from stl10bench.data.load import DATASETS
from stl10bench.models import registry
from stl10bench.models.methods import OF_PRETRAINING
from stl10bench.training.job import TRACKERS, Job

if TYPE_CHECKING:
    from stl10bench.plots.style import Look

# The panels, in the order in which every command shows those that it has. Options that are hidden
# are in --help-all.
FIRST, _MODEL = "Model and training (unset: as the recipe says)", "Model"
_GROUPS = {  # of settings: the first field of each, and its heading
    "input": "Images (the recipe overrides these defaults)",
    "patience": "Optimization (the recipe overrides these defaults)",
    "label_smoothing": "Loss, gradients and averaging (the recipe overrides these defaults)",
    "brightness": "Augmentation (the recipe overrides these defaults)",
    "cache_views": "Features, test and precision (the recipe overrides these defaults)",
}
_DATA, _MACHINE, _TIME, OUTPUT = "Data", "Machine", "Checkpoints and time", "Logging and output"
PANELS = (FIRST, _MODEL, *_GROUPS.values(), _DATA, _MACHINE, _TIME, OUTPUT)  # after others
_FREQUENT = ("epochs", "lr", "batch_size", "image_size", "seed")

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


def choice(
    kind: str,
    values: Sequence[str],
    *names: str,
    help_text: str | None = None,
    hidden: bool = False,
) -> Any:
    """An option that takes one of `values`; another is a UsageError that names the nearest."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in values:
            raise unknown(kind, value, values)
        return value

    help_text = help_text or f"{', '.join(values[:-1])} or {values[-1]}."
    return typer.Option(
        *names,
        help=help_text,
        callback=check,
        autocompletion=completing(values),
        metavar="NAME",
        hidden=hidden,
    )


def in_a_folder(output: Path | None) -> Path | None:
    """The callback of --output: a UsageError, before the work, for a folder that is not there."""
    if output is not None and not output.parent.exists():
        raise UsageError(
            f"--output {output}: there is no folder {output.parent}: create it, or choose another"
        )
    return output


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
        show_envvar=False,  # --help-all shows it
        **extra,
    )
    return Annotated[kind | None if default is None else kind, described], default


def _field_options(
    model: type[BaseModel],
    panel: str | None,
    names: Iterable[str],
    *,
    hidden: bool = False,
    note: bool = False,
) -> Specification:
    """An option for each of `names`, fields of `model`; unset, the model decides.

    With `note` its help says the field's default.
    """
    specification: Specification = {}
    for name in names:
        field = model.model_fields[name]
        kind: Any = field.annotation
        default, metavar, values = field.default, None, _VALUES.get(name, ())
        if get_origin(kind) is UnionType:  # X | None
            kind = get_args(kind)[0]
        if get_origin(kind) is Literal:
            kind, values = str, [each for each in get_args(kind) if each != SELF_SUPERVISED]
            metavar = "|".join(values)
        elif get_origin(kind) is tuple:
            kind, metavar = str, "LOW,HIGH"
            default = default and ",".join(f"{x:g}" for x in default)
        text = f" [default: {default}]" if note and default is not None else ""
        specification[name] = option(
            kind,
            f"{field.description}{text}",
            panel=panel,
            values=values,
            metavar=metavar or _METAVARS.get(kind),
            envvar=VARIABLES.get(name),
            hidden=hidden,
        )
    return specification


def load_plugin(module: str | None) -> None:
    """Import what --plugin names, if it was given."""
    if module is not None:
        registry.load_plugin(module)


MODEL = typer.Argument(
    help="A registered model, timm:NAME or hf-hub:OWNER/NAME.", autocompletion=_models
)
MODELS = typer.Argument(help="Models, or --all.", autocompletion=_models)
ModelOptions = Annotated[
    list[str] | None,
    typer.Option(
        help="Set an option of the model, e.g. channels=64,128; repeatable.",
        metavar="KEY=VALUE",
        rich_help_panel=_MODEL,
        hidden=True,
    ),
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option(
        help="Set an option of the method, e.g. views=2 (probe) or k=20 (knn); repeatable.",
        metavar="KEY=VALUE",
        rich_help_panel=_MODEL,
        hidden=True,
    ),
]
_CHECKPOINT = (
    "A run's name or folder, a checkpoint file, a folder from 'export --to hub', or "
    "hf-hub:OWNER/NAME."
)
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
        help="Names of runs, their beginnings, folders, or files in them; a model's name means all "
        "of its runs, but those that a study varied.",
        autocompletion=_runs,
    ),
]
SingleRunNames = Annotated[  # to remove: no name means more than one run
    list[str] | None,
    typer.Argument(
        help="Names of runs, their beginnings, folders, or files in them.", autocompletion=_runs
    ),
]
RunsDir = Annotated[
    Path,
    typer.Option(
        help="Folder that contains the runs.",
        envvar="STL10BENCH_RUNS",
        show_envvar=False,
        rich_help_panel=OUTPUT,
        metavar="DIR",
    ),
]
Picture = Annotated[
    Path,
    typer.Option(
        *("--output", "-o"),
        help="File to write: .png, .svg or .jpg.",
        metavar="FILE",
        callback=in_a_folder,
    ),
]
DataDir = Annotated[
    Path,
    typer.Option(
        help="Folder with stl10_binary/ or demo/.",
        envvar="STL10BENCH_DATA",
        show_envvar=False,
        rich_help_panel=_DATA,
        metavar="DIR",
    ),
]
RUNS, DATA_DIR = Path("runs"), Path("data")

_VALUES: dict[str, Sequence[str]] = {
    "dataset": DATASETS,
    "device": ("auto", "cpu", "cuda", "mps"),
    "tracker": TRACKERS,
}
_METAVARS = {int: "N", float: "X", str: "NAME", Path: "PATH"}
VARIABLES = {"weights": "STL10BENCH_WEIGHTS", "tracker": "STL10BENCH_TRACKER"}


def _job_options(*names: str, panel: str, hidden: bool = False) -> Specification:
    """Options of fields of Job, with their descriptions and defaults."""
    specification = _field_options(Job, panel, names, hidden=hidden)
    return {
        name: (kind, Job.model_fields[name].default) for name, (kind, _) in specification.items()
    }


def _other_settings() -> Specification:
    """The fields of RunConfig that most runs leave as they are."""
    specification: Specification = {}
    panel = ""
    for name in RunConfig.model_fields:
        if name not in (*DERIVED, *_FREQUENT, "method"):
            panel = _GROUPS.get(name, panel)
            specification |= _field_options(RunConfig, panel, [name], hidden=True, note=True)
    return specification


_first, _model, _machine = (partial(option, panel=name) for name in (FIRST, _MODEL, _MACHINE))
DATA: Specification = {
    **_job_options("dataset", panel=_DATA),
    "data_dir": (DataDir, DATA_DIR),
    **_job_options("verify", panel=_DATA, hidden=True),
}
DATA_OF_RUN = DATA | {  # of commands that take a run
    "dataset": option(
        str,
        f"{Job.model_fields['dataset'].description} [default: the run's]",
        panel=_DATA,
        values=DATASETS,
        metavar=_METAVARS[str],
    )
}
MACHINE = {
    **_job_options("device", panel=_MACHINE),
    **_job_options("threads", panel=_MACHINE, hidden=True),
}
PLUGIN = _job_options("plugin", panel=_MODEL, hidden=True)
OVERWRITE = _job_options("overwrite", panel=OUTPUT)
_Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object to stdout.", rich_help_panel=OUTPUT)
]
JSON: Specification = {"as_json": (_Json, False)}
LOOK: Specification = {
    "title": option(str, "Title of the figure; '' for none.", panel=OUTPUT, metavar="TEXT"),
    "dpi": option(int, "Pixels per inch.", 150, panel=OUTPUT, metavar="N", min=30, max=1200),
    "caption": option(bool, "Say below the figure how to read it.", True, panel=OUTPUT),
}


def check_format(style: str, as_json: bool) -> None:
    """Raise UsageError for a `--format` beside --json."""
    if as_json and style != "table":
        raise UsageError(f"--format {style} and --json: must be one of them")


TRAINING: Specification = {
    "recipe": _first(
        str,
        f"{', '.join(RECIPES)} [default: {DEFAULT_RECIPE}]",
        DEFAULT_RECIPE,
        values=tuple(RECIPES),
        metavar="NAME",
        show_default=False,
    ),
    **_field_options(RunConfig, FIRST, _FREQUENT),
    "freeze": _first(bool, "Freeze or fine-tune the backbone."),
    **_job_options("weights", panel=FIRST),
    "config": _first(Path, "Settings in a TOML or JSON file.", metavar="FILE"),
    "set": _first(list[str], "Any setting; repeatable.", metavar="K=V"),
    **_field_options(RunConfig, _MODEL, ["method"], hidden=True),
    "method_option": (MethodOptions, None),
    "model_option": (ModelOptions, None),
    "hidden": _model(
        str, "Widths of the hidden linear layers, e.g. 512,256.", metavar="A,B", hidden=True
    ),
    "dropout": _model(
        float, "Dropout rate after each hidden linear layer.", metavar="X", hidden=True
    ),
    "pretrained": _model(
        bool,
        "Start a backbone from timm's pretrained weights (downloaded, or --weights).",
        True,
        hidden=True,
    ),
    **PLUGIN,
    **_other_settings(),
    **DATA,
    **_job_options("download", panel=_DATA, hidden=True),
    **MACHINE,
    **_job_options("compile", "deterministic", panel=_MACHINE, hidden=True),
    **_field_options(Limits, _TIME, Limits.model_fields, hidden=True, note=True),
    "runs_dir": (RunsDir, RUNS),
    **_job_options("tracker", panel=OUTPUT),
    **_job_options(
        "note", "wandb_images", "wandb_artifact", "overwrite", panel=OUTPUT, hidden=True
    ),
}
_NOT_OF_PRETRAINING = {
    *("recipe", "freeze", "hidden", "dropout", "pretrained", "method"),
    *("wandb_images", "wandb_artifact"),
    *(RunConfig.model_fields.keys() - OF_PRETRAINING),
}
PRETRAINING: Specification = {
    name: pair for name, pair in TRAINING.items() if name not in _NOT_OF_PRETRAINING
}
WORKERS: Specification = {
    "workers": _machine(int, "Train N runs at once, each in its own process.", min=1, metavar="N"),
    "scheduler": _machine(
        str,
        "Running Dask scheduler: tcp://HOST:PORT or tls://HOST:PORT.",
        metavar="ADDRESS",
        hidden=True,
    ),
    "tls_ca": _machine(Path, "CA certificate of the Dask cluster (PEM).", hidden=True),
    "tls_cert": _machine(Path, "Certificate of this machine (PEM).", hidden=True),
    "tls_key": _machine(Path, "Private key of that certificate (PEM).", hidden=True),
}


def pop_look(options: dict[str, Any]) -> "Look":
    """What the options LOOK say of a figure; takes them out of `options`."""
    from stl10bench.plots.style import Look, Wording

    title, dpi, caption = (options.pop(name) for name in LOOK)
    return Look(Wording(title, caption), dpi)


def hiding(specification: Specification, *names: str) -> Specification:
    """The options, of which those of `names` are in --help-all alone."""
    changed = {}
    for name in names:
        kind, default = specification[name]
        value, described = get_args(kind)
        described = copy(described)
        described.hidden = True
        changed[name] = Annotated[value, described], default
    return specification | changed


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
