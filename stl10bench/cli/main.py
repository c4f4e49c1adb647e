"""The command line: which command lives where, and how a command ends."""

import contextlib
import json
import logging
import os
import signal
import sys
import traceback
import warnings
from copy import copy
from functools import partial
from importlib import import_module
from inspect import cleandoc
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from stl10bench.core import __version__, files
from stl10bench.core.console import (
    QUIET,
    VERBOSE,
    VERBOSITY,
    is_main,
    mute,
    muted_stderr,
    open_streams,
)
from stl10bench.core.errors import BenchError, StorageError, rule_of, suggest
from stl10bench.core.launcher import note_launcher, warn_of_one_process

# A command -> its module in stl10bench.cli, and the first line of its help: `--help` imports no
# module. The command's docstring goes on from there.
COMMANDS = {
    "train": ("train", "Train one model and print its row."),
    "pretrain": ("pretrain", "Pretrain a backbone on images without labels (SimCLR)."),
    "evaluate": ("train", "Evaluate a checkpoint on a split of the data."),
    "benchmark": ("train", "Train the missing runs of several models and print one table."),
    "table": ("results", "Print the table of all finished runs."),
    "compare": ("results", "Compare the accuracies of finished runs, pair by pair."),
    "report": ("report", "Write a self-contained report of all runs, in HTML or Markdown."),
    "lr-find": ("train", "Find a learning rate: raise it step by step and plot the loss."),
    "reproduce": ("train", "Train a stored run again and compare the results."),
    "study": ("study", "List, show and run studies (ablations of settings)."),
    "models": ("models", "List the models."),
    "describe": ("models", "Print a model's layers, output shapes, parameters, MACs and memory."),
    "predict": ("inference", "Classify images."),
    "export": ("inference", "Export a model to ONNX, torch.export or a Hugging Face folder."),
    "plot": ("report", "Plot the training curves of runs."),
    "visualize": ("visualize", "Draw images, predictions, filters, Grad-CAM and embeddings."),
    "rows": ("rows", "Share rows of finished runs, and verify those of others."),
    "runs": ("runs", "List, show and remove runs."),
    "data": ("data", "Download, verify, audit, draw or import data."),
    "config": ("config", "Show a run's settings and where they come from, or their schema."),
    "doctor": ("doctor", "Check whether training will work on this machine."),
}

HELP_ALL = "help_all"
_SHARED = (QUIET, VERBOSE, HELP_ALL)  # options of the program that every command has


class LazyGroup(TyperGroup):
    """Imports a command's module when the command is called, not to list it."""

    def __init__(self, **settings: Any) -> None:
        stubs = {name: TyperCommand(name, help=line) for name, (_, line) in COMMANDS.items()}
        super().__init__(**settings | {"commands": stubs})

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that `args` name, with its own options and ours, and the other words."""
        name, stub, words = super().resolve_command(ctx, args)
        if name is None or stub is None:
            return name, stub, words
        from stl10bench.cli.options import OUTPUT, PANELS

        ranks = {panel: rank for rank, panel in enumerate(PANELS)}
        module, line = COMMANDS[name]
        group = get_group(import_module(f"stl10bench.cli.{module}").app)
        command = group.commands.get(name, group)
        command.help = f"{line}\n{cleandoc(command.help or '')}"
        for part in (command, *getattr(command, "commands", {}).values()):
            text, heading, examples = cleandoc(part.help or "").partition("Examples:\n")
            part.help, part.epilog = text.strip(), heading + examples
            shared = [copy(option) for option in self.params if option.name in _SHARED]
            part.params += shared
            for option in (*shared, part.get_help_option(ctx)):
                option.rich_help_panel, option.hidden = OUTPUT, option.name != HELP_ALL
            part.params.sort(key=lambda option: ranks.get(option.rich_help_panel, -1))
            if ctx.resilient_parsing:  # completion offers all
                _reveal(part, ctx)
        return name, command, words


def _reveal(command: Any, ctx: typer.Context) -> None:
    """Show the options that only --help-all shows; those for the program itself have no help."""
    for option in command.get_params(ctx):
        if option.help:
            option.hidden, option.show_envvar = False, True


app = typer.Typer(
    name="stl10bench",
    cls=LazyGroup,
    help="Train and compare image classifiers on STL-10.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stl10bench {__version__}")
        raise typer.Exit


def _show_all(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        _reveal(ctx.command, ctx)
        typer.echo(ctx.get_help())
        raise typer.Exit


def _set_verbosity(option: typer.CallbackParam, wanted: bool) -> None:
    if wanted:
        os.environ[VERBOSITY] = str(option.name)
        if option.name == VERBOSE:
            logging.basicConfig(level=logging.INFO, stream=muted_stderr())


_verbosity = partial(typer.Option, callback=_set_verbosity, expose_value=False)


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    quiet: Annotated[
        bool, _verbosity("--quiet", "-q", help="Print only results, warnings and errors.")
    ] = False,
    verbose: Annotated[
        bool, _verbosity("--verbose", "-v", help="Also print library logs and error tracebacks.")
    ] = False,
    help_all: Annotated[
        bool,
        typer.Option(
            "--help-all",
            callback=_show_all,
            is_eager=True,
            expose_value=False,
            help="Show all options.",
        ),
    ] = False,
) -> None:
    pass


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    if is_main():
        typer.echo(f"warning: {message}", file=muted_stderr())


def _terminate(number: int, _: FrameType | None) -> None:
    """End on SIGTERM as on Ctrl-C, through every `finally`; on a second one at once."""
    signal.signal(number, signal.SIG_DFL)
    sys.exit(128 + signal.SIGTERM)


def _explain(error: Any) -> str:
    """Typer's words, but ours for a value of the wrong kind and an option that there is not."""
    if hasattr(error.__cause__, "errors"):  # pydantic's, of a value of error.param
        problem = error.__cause__.errors()[0]
        return f"{error.param.opts[0]} {problem['input']!s:.80}: {rule_of(problem)}"
    if not hasattr(error, "possibilities"):
        return str(error.format_message())
    options = [name for parameter in error.ctx.command.params for name in parameter.opts]
    hint = suggest(error.option_name, options, otherwise="--help lists the options")
    return f"{error.message}: {hint}"


def _print_error(error: "BenchError | typer.TyperException") -> int:
    """One line to stderr, from each process; with --json instead an object to stdout, of the first.

    Returns the exit code.
    """
    if os.environ.get(VERBOSITY) == VERBOSE:
        traceback.print_exception(error, file=muted_stderr())
    text = _explain(error) if isinstance(error, typer.TyperException) else str(error)
    line = " ".join(text.split())
    if "--json" in sys.argv and is_main():
        with contextlib.suppress(BrokenPipeError):
            typer.echo(json.dumps({"error": line, "exit_code": error.exit_code}))
            return error.exit_code
    if line:  # without arguments the help was printed instead
        typer.echo(f"error: {line}", file=muted_stderr())
    return error.exit_code


def main() -> None:
    """Run the command line; errors that a user can act on are one line and an exit code."""
    open_streams()
    note_launcher()
    warnings.showwarning = _warn
    warn_of_one_process()
    for name in ("SIGTERM", "SIGBREAK"):  # Ctrl-Break of Windows
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _terminate)
    try:
        code = app(standalone_mode=False)
    except (BenchError, typer.TyperException) as error:
        code = _print_error(error)
    except OSError as error:
        if error.errno not in files.FULL:
            raise
        code = _print_error(StorageError(f"no room on the disk: {error}; make room and try again"))
    except SystemExit as end:  # rich and typer end so when nobody reads any more: no error of ours
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        code = 0
    try:
        sys.stdout.flush()
    except OSError:
        mute(sys.stdout)
    sys.exit(code if isinstance(code, int) else 0)
