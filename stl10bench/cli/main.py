"""The command line: which command lives where, and how a command ends."""

import contextlib
import json
import logging
import os
import signal
import sys
import traceback
import warnings
from importlib import import_module
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from stl10bench.cli.examples import epilog
from stl10bench.core import __version__, files
from stl10bench.core.console import (
    QUIET,
    VERBOSE,
    VERBOSITY,
    is_main,
    mute,
    muted_stderr,
    note_launcher,
    open_streams,
)
from stl10bench.core.errors import BenchError, StorageError

COMMANDS = {  # -> its module in stl10bench.cli, and the first line of its help
    "train": ("train", "Train one model and print its row."),
    "evaluate": ("train", "Measure a checkpoint; needs only the file and the data."),
    "benchmark": (
        "train",
        "Train what is missing, each model in its own process, and print one table.",
    ),
    "table": ("results", "Print the table of all finished runs."),
    "compare": ("results", "Compare finished runs, image by image, pair by pair."),
    "report": (
        "results",
        "Write one page of all that the runs tell, a file that needs nothing but itself.",
    ),
    "reproduce": (
        "train",
        "Train a stored run again and say whether bits, or only statistics, agree.",
    ),
    "study": ("study", "List, show and run studies: what a setting is worth."),
    "models": ("models", "List the models."),
    "describe": ("models", "Print a model's layers, output shapes, parameters, MACs and memory."),
    "predict": ("inference", "Name the likeliest classes of images; needs only the checkpoint."),
    "export": ("inference", "Write a model as ONNX, for torch.export or as a Hugging Face folder."),
    "plot": (
        "results",
        "Draw the curves of runs: loss, accuracy, learning rate and speed over the epochs.",
    ),
    "visualize": ("visualize", "Draw the data, and what models make of them."),
    "runs": ("runs", "List, show and remove runs."),
    "data": ("data", "Download, check, audit, draw or import data."),
    "doctor": ("doctor", "Say whether a run would work here, and what to do where it would not."),
}


class LazyGroup(TyperGroup):
    """Imports a command's module when the command is called, not to list it."""

    def __init__(self, **settings: Any) -> None:
        stubs = {name: TyperCommand(name, help=line) for name, (_, line) in COMMANDS.items()}
        super().__init__(**settings | {"commands": stubs})

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that `args` name, with its options, and what is left of them."""
        name, stub, rest = super().resolve_command(ctx, args)
        if name is None or stub is None:
            return name, stub, rest
        group = get_group(import_module(f"stl10bench.cli.{COMMANDS[name][0]}").app)
        command = group.commands.get(name, group)
        command.epilog = epilog(name)
        command.params.extend(_loudness())
        for sub, one in getattr(command, "commands", {}).items():
            one.epilog = epilog(f"{name} {sub}")
            one.params.extend(_loudness())
        return name, command, rest


def _set_quiet(asked: bool) -> None:
    if asked:
        os.environ[VERBOSITY] = QUIET


def _set_verbose(asked: bool) -> None:
    if asked:
        os.environ[VERBOSITY] = VERBOSE
        logging.basicConfig(level=logging.INFO, stream=muted_stderr())


_QUIET = typer.Option(
    "--quiet", "-q", callback=_set_quiet, help="Only results, warnings and errors."
)
_VERBOSE = typer.Option(
    "--verbose",
    "-v",
    callback=_set_verbose,
    help="Also what libraries log, and where an error comes from.",
)


def _loudness() -> list[Any]:
    """The options that each command has, as Typer makes them of a function's parameters."""
    one = typer.Typer(add_completion=False)

    @one.command()
    def _(
        quiet: Annotated[bool, _QUIET] = False, verbose: Annotated[bool, _VERBOSE] = False
    ) -> None: ...

    options = get_command(one).params
    for option in options:
        option.expose_value = False
    return options


app = typer.Typer(
    name="stl10bench",
    cls=LazyGroup,
    help="Train and compare image classifiers on STL-10.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"stl10bench {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Annotated[bool, _QUIET] = False,
    verbose: Annotated[bool, _VERBOSE] = False,
) -> None:
    pass


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    if is_main():
        typer.echo(f"warning: {message}", file=muted_stderr())


def _terminate(number: int, _: FrameType | None) -> None:
    """End on SIGTERM as on Ctrl-C, by the way of every `finally`; on a second one at once."""
    signal.signal(number, signal.SIG_DFL)
    sys.exit(128 + number)


def _say(error: "BenchError | typer.TyperException") -> None:
    """One line to stderr, from each process; with --json an object to stdout, from the first."""
    if os.environ.get(VERBOSITY) == VERBOSE:
        traceback.print_exception(error, file=muted_stderr())
    text = error.format_message() if isinstance(error, typer.TyperException) else str(error)
    line = " ".join(text.split())
    if line:  # else the help was shown, for want of arguments
        typer.echo(f"error: {line}", file=muted_stderr())
    if "--json" in sys.argv and is_main():
        with contextlib.suppress(BrokenPipeError):
            typer.echo(json.dumps({"error": line, "exit_code": error.exit_code}))


def main() -> None:
    """Run the command line; errors that a user can act on are one line and an exit code."""
    open_streams()
    note_launcher()
    warnings.showwarning = _warn
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = app(standalone_mode=False)
    except (BenchError, typer.TyperException) as error:
        _say(error)
        code = error.exit_code
    except OSError as error:
        if error.errno not in files.FULL:
            raise
        _say(StorageError(f"no room for what is written: {error}"))
        code = StorageError.exit_code
    except SystemExit as end:  # as rich and typer end when nobody reads any more: no error of ours
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        code = 0
    try:
        sys.stdout.flush()
    except OSError:
        mute(sys.stdout)
    sys.exit(code if isinstance(code, int) else 0)
