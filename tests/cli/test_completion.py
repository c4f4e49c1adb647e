"""What a shell offers, and what `--help` shows of each command in use."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.entry import leaves
from typer.main import get_command

from stl10bench.cli.main import app

OLD_RUNS = Path(__file__).parents[1] / "fixtures" / "runs-0.1.0"


def offered(*words: str, folder: Path | None = None) -> list[str]:
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
        cwd=folder,
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
        (("train", "cnn", "--recipe", ""), ["report", "tuned", "fast", "quick"]),
        (("data", "imp"), ["import"]),
        (("data", "import", "--test"), ["--test-fraction"]),
        (("export", "best.safetensors", "--to", ""), ["onnx", "torch", "hub"]),
    ],
)
def test_commands_models_options_and_values_are_completed(
    words: tuple[str, ...], expected: list[str]
) -> None:
    assert offered(*words) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("runs", "show", "ml"), ["mlp-6585d2c6"]),
        (("compare", "logistic-3ccf0de0", "ml"), ["mlp-6585d2c6"]),
        (("report", "--runs-dir", "nowhere", ""), []),
        (("study", "show", "logistic-by"), ["logistic-by-lr"]),
        (("study", "run", "logistic-o"), ["logistic-optimizer"]),
        (("predict", "runs/mlp"), ["runs/mlp-6585d2c6/best.safetensors"]),
        (("visualize", "filters", "runs/mlp"), ["runs/mlp-6585d2c6/best.safetensors"]),
        (("evaluate", "runs/mlp"), ["runs/mlp-6585d2c6/best.safetensors"]),
    ],
)
def test_runs_studies_and_checkpoints_are_completed(
    tmp_path: Path, words: tuple[str, ...], expected: list[str]
) -> None:
    shutil.copytree(OLD_RUNS, tmp_path / "runs")
    assert offered(*words, folder=tmp_path) == expected


LEAVES = leaves()
EXAMPLES = [
    (name, line)
    for name, command in LEAVES.items()
    for line in command.epilog.splitlines()
    if line != "Examples:"
]


@pytest.mark.parametrize("name", LEAVES)
def test_a_command_has_a_line_of_help_and_examples_of_its_own(name: str) -> None:
    line = LEAVES[name].help.split("\n\n")[0].replace("\n", " ")
    assert line[0].isupper()
    assert line[-1] == "."
    assert any(example.startswith(f"stl10bench {name}") for _, example in EXAMPLES)
    options = {option.name: option.opts for option in LEAVES[name].params}
    assert {"quiet", "verbose"} <= options.keys()
    assert options.get("output", ["--output", "-o"]) == ["--output", "-o"]


@pytest.mark.parametrize(("name", "line"), EXAMPLES)
def test_an_example_is_a_command_line_that_parses_and_fits(name: str, line: str) -> None:
    assert len(line) <= 58
    program, *arguments = shlex.split(line)
    assert " ".join([program, *arguments]).startswith(f"stl10bench {name}")
    command: Any = get_command(app)
    context = None
    while True:
        context = command.make_context(program, list(arguments), parent=context)
        if not hasattr(command, "resolve_command"):
            break
        program, command, arguments = command.resolve_command(context, arguments)


PANELS = [  # everywhere in this order; what has no panel of its own comes first
    *("Arguments", "Options", "Search (extra tune)", "Model and training", "Model", "Images"),
    *("Optimization", "Loss, gradients and averaging", "Augmentation"),
    *("Features, test and precision", "Data", "Machine", "Checkpoints and time"),
    "Logging and output",
]


def shown(cli: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = cli(*words)
    assert code == 0
    return str(out)


@pytest.mark.parametrize("command", ["train", "benchmark", "study run"])
def test_help_is_a_page_of_the_options_used_most(
    cli: Any, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    text = shown(cli, monkeypatch, *command.split(), "--help")
    assert text.count("\n") <= 40
    assert {"--recipe", "--epochs", "--dataset", "--help-all"} <= set(text.split())
    assert "--momentum" not in text


@pytest.mark.parametrize("name", LEAVES)
def test_all_options_are_in_help_all_in_the_same_order_of_panels(
    cli: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    text = shown(cli, monkeypatch, *name.split(), "--help-all")
    for option in LEAVES[name].params:
        if option.name != "job" and option.param_type_name == "option":
            assert option.opts[0] in text
    panels = [line[3:].split(" ─")[0].partition(" (")[0] for line in re.findall("╭─.*", text)]
    order = [panel.partition(" (")[0] for panel in PANELS]
    assert panels == sorted(panels, key=order.index)
