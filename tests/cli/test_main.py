"""The command line as a user meets it: what it prints where, and how it exits."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.entry import leaves
from helpers.forks import Forks
from PIL import Image

import stl10bench
from stl10bench.cli.main import COMMANDS, main
from stl10bench.data.demo import make_demo
from stl10bench.training import reproduce

TINY = [
    *("--image-size", "8", "--epochs", "1", "--batch-size", "8"),
    *("--tracker", "none", "--threads", "1"),
]


class Ended:
    """What a command printed and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    data_dir: Path,
) -> Any:
    """Run the real entry point in this process, on the small data, in a folder of its own."""
    monkeypatch.setenv("STL10BENCH_DATA", str(data_dir))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["stl10bench", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return call


def test_train_prints_one_table_to_stdout_and_the_epochs_to_stderr(cli: Any) -> None:
    ended = cli("train", "logistic", *TINY, "--epochs", "2", "--note", "a first try")
    assert ended.code == 0
    assert "logistic" in ended.out
    (name,) = re.findall(r"plot (logistic-[0-9a-f]{8}) ", ended.err)
    assert json.loads(Path("runs", name, "result.json").read_text())["note"] == "a first try"
    assert "epoch" not in ended.out
    assert re.findall(r"epoch (\d)/2", ended.err) == ["1", "2"]


@pytest.mark.parametrize("columns", ["80", "40"])
def test_an_epoch_is_one_line_of_at_most_80_characters_however_narrow_the_terminal(
    cli: Any, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    train = cli("train", "logistic", *TINY, "--epochs", "10")
    assert train.code == 0
    pretrain = cli("pretrain", "simclr", "--backbone", "cnn", *TINY, "--model-option", "channels=4")
    assert pretrain.code == 0, pretrain.err
    epochs = [line for line in (train.err + pretrain.err).splitlines() if line.startswith("epoch")]
    assert [line.endswith(" images/s") for line in epochs[:10]] == [True] * 10, epochs
    assert "(val " in epochs[0], epochs
    assert "  kNN " in epochs[10], epochs
    assert max(map(len, epochs)) <= 80


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_commands_that_train_names_work_as_printed_for_a_run_on_the_demo_images(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    make_demo(tmp_path / "data" / "demo", train=100, test=20)
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    monkeypatch.delenv("STL10BENCH_DATA")
    folders = ["--runs-dir", "mine", "--data-dir", str(tmp_path / "data")] if elsewhere else []
    monkeypatch.chdir(tmp_path / "data" if elsewhere else tmp_path)
    ended = cli("train", "logistic", *TINY, "--dataset", "demo", *folders)
    commands = re.findall(r"^  stl10bench (.+?) +# ", ended.err, re.M)
    assert [command.split()[0] for command in commands][1:4] == ["plot", "visualize", "predict"]
    for command in commands:
        ended = cli(*command.replace("IMAGE", str(tmp_path / "photo.png")).split())
        assert (ended.code, ended.err) == (0, ""), command
    if not elsewhere:
        assert json.loads(cli("evaluate", "logistic", "--json").out)["dataset"] == "demo"
        assert cli("reproduce", "logistic", "--threads", "1").code == 0


def test_quiet_says_nothing_on_stderr_but_warnings_and_errors(
    cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STL10BENCH_TALK", "")  # what is set in this process ends with the test
    ended = cli("train", "logistic", *TINY, "--quiet")
    assert (ended.code, ended.err) == (0, "")
    assert "logistic" in ended.out
    ended = cli("-q", "table", "--runs-dir", "nowhere")
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)


def test_verbose_says_where_an_error_comes_from_and_what_libraries_log(tmp_path: Path) -> None:
    code = (
        "import contextlib, logging; from stl10bench.cli.main import main\n"
        "with contextlib.suppress(SystemExit): main()\n"
        "logging.getLogger('timm').info('what it did')"
    )
    said = {}
    for options in ([], ["-v"]):
        arguments = ["table", "--runs-dir", "nowhere", *options]
        ended = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        said[len(options)] = ended.stderr.splitlines()
    assert [line.split(":")[0] for line in said[0]] == ["error"]
    assert said[1][0].startswith("Traceback")
    assert said[1][-2:] == [said[0][0], "INFO:timm:what it did"]


def test_json_prints_one_object_and_nothing_else_to_stdout(cli: Any, tmp_path: Path) -> None:
    row = json.loads(cli("train", "mlp", *TINY, "--hidden", "8,4", "--json").out)
    assert row["model_options"] == {"hidden": [8, 4], "dropout": 0.2}
    assert (tmp_path / "runs" / row["checkpoint"]).is_file()
    again = cli("train", "mlp", *TINY, "--hidden", "8,4", "--json")
    assert json.loads(again.out) == row
    assert "is finished. Pass --overwrite" in again.err


def test_evaluate_needs_only_the_checkpoint_and_the_data(cli: Any, tmp_path: Path) -> None:
    row = json.loads(cli("train", "logistic", *TINY, "--json").out)
    moved = tmp_path / "elsewhere" / "model.safetensors"
    moved.parent.mkdir()
    (tmp_path / "runs" / row["checkpoint"]).rename(moved)
    found = json.loads(cli("evaluate", str(moved), "--json").out)
    assert found["test_accuracy"] == row["test_accuracy"]
    ended = cli("evaluate", str(moved))
    assert f"accuracy {row['test_accuracy']:.4f} [" in ended.out
    assert re.search(r", loss \d+\.\d{4}$", ended.out.strip()), "no more digits than these"


@pytest.mark.parametrize(
    "command", [("train", "mlp"), ("lr-find", "mlp"), ("benchmark", "logistic", "mlp")]
)
def test_a_config_of_another_model_is_refused(
    cli: Any, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "config.json").write_text('{"model": "logistic", "lr": 0.5}')
    ended = cli(*command, "--config", "config.json")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert (
        "config.json contains the settings of logistic, not of mlp: name logistic, or" in ended.err
    )


def test_the_config_of_a_run_reproduces_the_run(cli: Any, tmp_path: Path) -> None:
    row = json.loads(cli("train", "mlp", *TINY, "--hidden", "8", "--lr", "0.01", "--json").out)
    config = tmp_path / "runs" / row["run"] / "config.json"
    again = cli("train", "mlp", "--config", str(config), "--tracker", "none", "--json")
    assert json.loads(again.out)["run"] == row["run"]


def test_a_run_from_the_weights_of_another_is_reproduced_from_its_name(
    cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "mlp", *TINY, "--hidden", "8", "--json"]
    first = json.loads(cli(*words).out)["run"]
    second = json.loads(cli(*words, "--weights", first).out)["run"]
    words = ["reproduce", second, "--weights", first, "--threads", "1", "--json"]
    again = cli(*words)
    assert json.loads(again.out)["bits"] is True
    same = reproduce.reproduce_run
    other = {"predictions": False, "p": 0.01}
    monkeypatch.setattr(reproduce, "reproduce_run", lambda *run: same(*run)._replace(**other))
    again = cli(*words)
    assert (again.code, json.loads(again.out)["exit_code"]) == (8, 8)  # one object


@pytest.mark.usefixtures("forked_jobs")
def test_benchmark_puts_failed_models_last_and_goes_on(cli: Any, tmp_path: Path) -> None:
    options = [*TINY, "--image-size", "32", "--no-pretrained"]
    ended = cli("benchmark", "logistic", "cnn", "mobilenetv2", *options, "--format", "json")
    assert ended.code == 0
    rows = json.loads(ended.out)
    finished = [row for row in rows if "test_accuracy" in row]
    accuracies = [row["test_accuracy"] for row in finished]
    assert rows[:2] == finished
    assert accuracies == sorted(accuracies, reverse=True)
    logistic, mobilenet = sorted(finished, key=lambda row: row["model"])
    assert (logistic["model"], logistic["vs_best"] is not None) == ("logistic", True)
    assert (mobilenet["model_options"]["freeze"], mobilenet["pretrained"]) == (False, False)
    assert [row["model"] for row in rows[2:]] == ["cnn"]
    assert "needs at least 61 px" in rows[2]["error"]
    assert "frozen backbones left out: with random weights they cannot learn" in ended.err
    again = cli("benchmark", "logistic", *options, "--format", "csv")
    (line,) = csv.DictReader(io.StringIO(again.out))
    assert line["run"] == logistic["run"]
    assert float(line["test_accuracy"]) == logistic["test_accuracy"]
    shown = cli("table").out
    assert "logistic" in shown
    assert "mobilenetv2 (from scratch)" in shown


def test_what_cannot_run_is_said_of_a_frozen_backbone_that_was_asked_for(cli: Any) -> None:
    plan = cli("benchmark", "mobilenetv2", "--freeze", *TINY, "--no-pretrained", "--dry-run")
    assert "cannot run: A frozen backbone with random weights cannot learn" in plan.out


@pytest.mark.usefixtures("forked_jobs", "quick_timings")
def test_benchmark_repeats_each_model_over_seeds_and_trains_only_what_is_missing(
    cli: Any, tmp_path: Path
) -> None:
    for seed in ("0", "1"):
        cli("train", "logistic", *TINY, "--seed", seed)
    files = {path: path.read_bytes() for path in tmp_path.glob("runs/*/result.json")}
    plan = cli("benchmark", "logistic", "mlp", *TINY, "--seeds", "3", "--dry-run")
    states = re.findall(r"--seed \d +(done|missing)", plan.out)
    assert states == ["done", "missing", "done", "missing", "missing", "missing"]
    assert "Estimated time left: " in plan.out
    ended = cli("benchmark", "logistic", *TINY, "--seeds", "3", "--format", "json")
    assert ended.err.count("validation ") == 1  # the one that was missing
    (row,) = json.loads(ended.out)
    assert (row["runs"], row["runs_asked"], len(row["repeats"])) == (3, 3, 3)
    assert all(path.read_bytes() == content for path, content in files.items())


@pytest.mark.usefixtures("quick_timings")
def test_folds_are_ten_runs_and_one_row(cli: Any) -> None:
    cli("data", "make-demo", "--data-dir", "data", "--train", "40", "--test", "20")
    options = [*TINY, "--dataset", "demo", "--data-dir", "data", "--runs-dir", "folds"]
    for fold in ("0", "9"):
        assert cli("train", "logistic", *options, "--fold", fold, "--batch-size", "8").code == 0
        shown = cli("table", "--runs-dir", "folds").out
        assert (", trained on fold 0" in shown) == (fold == "0")
    batch = ["--batch-size", "8", "--protocol", "folds"]
    plan = cli("benchmark", "logistic", *options, *batch, "--dry-run").out
    assert [int(fold) for fold in re.findall(r"--fold (\d)", plan)] == list(range(10))
    assert (plan.count("done"), plan.count("missing")) == (2, 8)
    shown = cli("table", "--runs-dir", "folds").out
    assert "each trained on one of the pre-defined folds, which share" in shown
    listed = json.loads(cli("table", "--runs-dir", "folds", "--format", "json").out)
    (row,) = [row for row in listed if not row["baseline"]]
    assert (row["runs"], row["selection"]) == (2, "last epoch")
    apart = ["--no-combine", "--no-baselines", "--format", "json"]
    assert len(json.loads(cli("table", "--runs-dir", "folds", *apart).out)) == 2


def test_a_run_that_diverged_is_a_row_of_the_table_and_is_not_trained_again(cli: Any) -> None:
    wild = [*TINY, "--lr", "1e30", "--optimizer", "sgd", "--schedule", "constant"]
    assert cli("train", "mlp", *wild).code == 5
    cli("train", "logistic", *TINY)
    assert "diverged" in cli("table").out
    again = cli("benchmark", "mlp", *wild)
    assert again.code == 2
    assert "epoch" not in again.err
    assert "diverged" in again.out


@pytest.mark.usefixtures("forked_jobs")
def test_benchmark_gives_each_model_the_options_that_it_has(cli: Any, tmp_path: Path) -> None:
    ended = cli("benchmark", "logistic", "mlp", *TINY, "--hidden", "8,4", "--format", "json")
    rows = json.loads(ended.out)
    assert [row["model_options"] for row in rows] == [{}, {"hidden": [8, 4], "dropout": 0.2}]
    ended = cli("benchmark", "logistic", *TINY, "--dropout", "0.5")
    assert ended.code == 2
    assert "none of the models has the option dropout=0.5" in ended.err


def test_the_reference_rows_stand_beside_ones_own(cli: Any) -> None:
    cli("train", "logistic", *TINY)
    shown = cli("table", "--reference", "--format", "markdown").out
    assert shown.index("STL-10 layout") < shown.index("reference: the course report's table")
    assert "| mlp | 1.993 | 0.351 [0.341, 0.361]" in shown


def test_models_lists_every_registered_name(cli: Any) -> None:
    names = ["logistic", "mlp", "cnn", "resnet9", "kmeans", "mobilenetv2"]
    assert cli("models").out.split()[:6] == names


def test_describe_gives_the_layer_table_of_the_report(cli: Any) -> None:
    out = cli("describe", "cnn").out
    assert "8,807,106 parameters" in out
    assert "256x62x62" in out
    layers = json.loads(cli("describe", "cnn", "--json").out)["layers"]
    assert [layer["parameters"] for layer in layers if layer["kind"] == "Conv2d"] == [
        7_168,
        1_180_160,
        2_359_808,
        4_609_000,
    ]


WRITERS = [name for name, leaf in leaves().items() if any(p.name == "output" for p in leaf.params)]


@pytest.mark.parametrize("command", WRITERS)
def test_an_output_in_a_folder_that_is_not_there_is_refused_and_makes_none(
    cli: Any, command: str
) -> None:
    ended = cli(*command.split(), "--output", "none/there/x.png")
    told = "--output none/there/x.png: there is no folder none/there: create it, or choose another"
    assert (ended.code, ended.err) == (2, f"error: {told}\n")
    assert not Path("none").exists()


@pytest.mark.usefixtures("forgetful")
def test_a_plugin_from_the_working_folder_trains(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text(
        "from torch import nn\n"
        "from stl10bench import register\n\n"
        "@register\n"
        "def mean_colour(num_classes: int, image_size: int, *, width: int = 4) -> nn.Module:\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, width),\n"
        "                         nn.Linear(width, num_classes))\n"
    )
    row = json.loads(
        cli(
            *("train", "mean_colour", "--plugin", "my_models", *TINY),
            *("--model-option", "width=5", "--json"),
        ).out
    )
    assert row["parameters"] == 3 * 5 + 5 + 5 * 4 + 4
    assert row["model_options"] == {"width": 5}


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ("train mpl", 2, "unknown model 'mpl': did you mean 'mlp'"),
        ("train cnn --lr 0", 2, "lr = 0.0: must be greater than 0"),
        ("train cnn --lr -1", 2, "lr = -1.0: must be greater than 0"),
        ("train cnn --lr nan", 2, "lr = nan: must be a finite number"),
        ("train cnn --lr inf", 2, "lr = inf: must be a finite number"),
        ("train cnn --epochs 0", 2, "epochs = 0: must be greater than or equal to 1"),
        ("train cnn --batch-size 0", 2, "batch_size = 0: must be greater than or equal to 1"),
        ("train logistic --batch-size 64", 2, "batch_size = 64 is larger than the 36"),
        (
            "train cnn --image-size 60 --batch-size 8",
            2,
            "image_size = 60: cnn with 4 convolutions needs at",
        ),
        ("train cnn --recipe tuend", 2, "unknown recipe 'tuend': did you mean 'tuned'"),
        ("train cnn --schedule cosin", 2, "unknown schedule 'cosin': did you mean 'cosine'"),
        (
            "train logistic --optimizer sgdd --batch-size 8",
            2,
            "unknown optimizer 'sgdd': did you mean 'sgd",
        ),
        ("train cnn --rotation 20", 2, "rotation = 20: must be LOW,HIGH"),
        ("train cnn --rotation 20,0", 2, "rotation = 20.0,0.0: must be -180"),
        ("train cnn --model-option width", 2, "must be KEY=VALUE"),
        ("train cnn --model-option width=3", 2, "model 'cnn' has no option 'width'"),
        ("train cnn --hidden 12,a", 2, "option hidden = 'a' of model 'cnn'"),
        (
            "train cnn --plugin no_such",
            2,
            "no plugin 'no_such': there is no file no_such.py, no folder",
        ),
        (
            "train mobilenetv2 --freeze --no-pretrained",
            2,
            "A frozen backbone with random weights cannot learn.",
        ),
        ("train mobilenetv2 --no-pretrained", 2, "or use --no-freeze."),
        ("train logistic --weights x.safetensors", 4, "cannot read the weights x.safe"),
        ("train mobilenetv2 --weights no.safetensors", 4, "cannot read the weights no.safe"),
        ("train cnn --epochs many", 2, "error: --epochs many: must be a whole number"),
        ("train cnn --max-minutes x", 2, "error: --max-minutes x: must be a number"),
        ("visualize samples --seed -1", 2, "error: --seed -1: must be greater than or equal to 0"),
        ("train cnn --set keep_copies=maybe", 2, "keep_copies = 'maybe': must be true or false"),
        ("train cnn --data-dir nowhere", 3, "stl10bench data download --data-dir nowhere"),
        ("train cnn --config no.json", 2, "cannot read no.json"),
        ("train cnn --config odd.json", 2, "odd.json: model_options must be an object"),
        ("train cnn --learning-rate 1", 2, "No such option: --learning-rate: did you mean '--lr'"),
        ("train cnn --bs 1", 2, "No such option: --bs: did you mean '--batch-size'"),
        ("train cnn --epoch 1", 2, "No such option: --epoch: did you mean '--epochs'"),
        ("table -b", 2, "No such option: -b: did you mean '--baselines'"),
        ("evaluate x --zzzz", 2, "No such option: --zzzz: --help lists the options"),
        ("train timm:resnet999 --no-pretrained", 2, "unknown timm model 'resnet999': did you mean"),
        ("trian cnn", 2, "No such command 'trian'. Did you mean 'train', "),
        ("evaluate no.safetensors", 4, "no checkpoint no.safetensors"),
        ("evaluate pickle.pt", 4, "is a pickle"),
        ("evaluate noise.safetensors", 4, "is not a safetensors file"),
        ("evaluate noise.safetensors --split tset", 2, "did you mean 'test'"),
        ("benchmark", 2, "Missing model: name one or more, or pass --all"),
        ("benchmark mpl", 2, "unknown model 'mpl'"),
        ("benchmark mlp --format tabel", 2, "unknown format 'tabel': did you mean 'table'"),
        ("table --runs-dir none", 2, "no finished run in none"),
    ],
)
def test_bad_input_is_one_line_with_the_remedy(
    cli: Any, tmp_path: Path, arguments: str, code: int, text: str
) -> None:
    import torch

    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle.pt")
    (tmp_path / "odd.json").write_text('{"model_options": 3}')
    (tmp_path / "noise.safetensors").write_bytes(bytes(range(256)) * 10)
    ended = cli(*arguments.split())
    assert (ended.code, ended.out) == (code, "")
    last = ended.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert text in last


def test_an_error_with_json_is_an_object_on_stdout_and_is_not_said_again(cli: Any) -> None:
    ended = cli("train", "mpl", "--json")
    assert json.loads(ended.out)["exit_code"] == ended.code == 2
    assert ended.err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_of_itself_what_the_list_says_of_it(cli: Any, command: str) -> None:
    assert COMMANDS[command][1] in " ".join(cli(command, "--help").out.split())


def test_help_for_want_of_arguments_is_no_error_message(cli: Any) -> None:
    assert "error" not in cli().err


@pytest.fixture(scope="module")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run in `runs`, to be read."""
    folder = tmp_path_factory.mktemp("trained")
    tiny: dict[str, Any] = {"image_size": 8, "epochs": 1, "batch_size": 8, "threads": 1}
    places = {"data_dir": data_dir, "runs_dir": folder / "runs"}
    stl10bench.train("logistic", **tiny, **places, tracker="none")
    return folder


def closed_pipe(number: int) -> str:
    """Python code for a command's process: nobody reads its stdout (1) or stderr (2)."""
    return f"import os; read, write = os.pipe(); os.close(read); os.dup2(write, {number})"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("models", 0),
        ("models --json", 0),
        ("describe cnn", 0),
        ("runs list", 0),
        ("table", 0),
        ("train --help", 0),
        ("train mpl --json", 2),
        ("train mpl", 2),
    ],
)
def test_a_closed_pipe_changes_no_exit_code_and_gives_no_traceback(
    forks: Forks, trained: Path, arguments: str, code: int
) -> None:
    before = f"import os; os.chdir({str(trained)!r})\n" + closed_pipe(1)
    ended = forks.run(*arguments.split(), before=before)
    assert (ended.code, "Traceback" in ended.err) == (code, False), ended.err
    assert ended.err.count("error: ") == bool(code)


@pytest.mark.parametrize("before", [closed_pipe(2), "import sys; sys.stdout = sys.stderr = None"])
def test_a_run_goes_on_when_nobody_listens(
    forks: Forks, data_dir: Path, tmp_path: Path, before: str
) -> None:
    places = ["--data-dir", data_dir, "--runs-dir", tmp_path]
    assert forks.run("train", "logistic", *TINY, *places, before=before).code == 0
    (path,) = tmp_path.glob("*/status.json")
    assert json.loads(path.read_text())["state"] == "finished"


@pytest.mark.parametrize(
    ("arguments", "number"), [("models", 1), ("table --runs-dir runs", 1), ("train mpl", 2)]
)
def test_a_full_disk_behind_stdout_is_an_error_and_one_behind_stderr_is_not(
    forks: Forks, trained: Path, arguments: str, number: int
) -> None:
    full = f"import os; os.dup2(os.open('/dev/full', os.O_WRONLY), {number})"
    ended = forks.run(*arguments.split(), before=f"{full}; os.chdir({str(trained)!r})")
    if number == 1:
        assert ended.code == 7
        assert ended.err.startswith("error: no room on the disk: ")
    else:
        assert (ended.code, ended.err) == (2, "")


def test_light_commands_import_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['stl10bench', '--help']\n"
        "from stl10bench.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'torchvision', 'timm', 'accelerate', 'wandb', 'numpy', 'pydantic'}\n"
        "sys.exit(repr(heavy & sys.modules.keys()) if heavy & sys.modules.keys() else 0)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "benchmark" in ended.stdout


def test_no_commands_module_imports_torch_before_the_command_runs() -> None:
    code = (
        "import sys; from importlib import import_module\n"
        "from stl10bench.cli.main import COMMANDS\n"
        "for module, _ in COMMANDS.values(): import_module(f'stl10bench.cli.{module}')\n"
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_python_dash_m_works_with_another_working_folder(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "stl10bench", "--version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.fullmatch(r"stl10bench \d+\.\d+\.\d+\n", ended.stdout)
