"""What a shell offers, and what `--help` shows of each command in use."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from stl10bench.cli.examples import EXAMPLES
from stl10bench.cli.main import COMMANDS, app


def offered(*words: str) -> list[str]:
    """What bash would offer after the words, the last of which is incomplete."""
    ended = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'stl10bench'\n"
         "from stl10bench.cli.main import main; main()"],
        env={
            "COMP_WORDS": shlex.join(["stl10bench", *words]),
            "COMP_CWORD": str(len(words)),
            "_STL10BENCH_COMPLETE": "complete_bash",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert ended.stderr == ""
    return ended.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("ev",), ["evaluate"]),
        (("train", "m"), ["mlp", "mobilenetv2"]),
        (("benchmark", "cnn", "ti"), ["timm:"]),
        (("describe", "lo"), ["logistic"]),
        (("train", "cnn", "--label-s"), ["--label-smoothing"]),
        (("train", "cnn", "--schedule", "co"), ["constant", "cosine"]),
        (("train", "cnn", "--recipe", ""), ["report", "tuned", "quick"]),
        (("data", "imp"), ["import"]),
        (("data", "import", "--test"), ["--test-fraction"]),
        (("export", "best.safetensors", "--to", ""), ["onnx", "torch", "hub"]),
    ],
)
def test_commands_models_options_and_values_are_completed(
    words: tuple[str, ...], expected: list[str]
) -> None:
    assert offered(*words) == expected


def test_every_command_shows_examples() -> None:
    from importlib import import_module

    names = set()
    for name, (module, _) in COMMANDS.items():
        group = get_command(import_module(f"stl10bench.cli.{module}").app)
        nested = getattr(getattr(group, "commands", {}).get(name, group), "commands", {})
        nested = {sub: command for sub, command in nested.items() if not command.hidden}
        names |= {f"{name} {sub}" for sub in nested} if nested else {name}
    assert set(EXAMPLES) == names


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_an_example_is_a_command_line_that_parses_and_fits(line: str) -> None:
    assert len(line) <= 58
    program, *arguments = shlex.split(line)
    assert program == "stl10bench"
    command, name = get_command(app), program
    context = None
    while True:
        context = command.make_context(name, list(arguments), parent=context)
        if not hasattr(command, "resolve_command"):
            break
        name, command, arguments = command.resolve_command(context, arguments)
    assert line in command.epilog
