"""What a study is: named ones, files and options, and what of them is refused."""

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stl10bench.config import RECIPES
from stl10bench.core.errors import BenchError, UsageError
from stl10bench.studies import parse, plan, study
from stl10bench.studies.plan import Start

START = Start(None, True)
THREE = ("epochs", "batch_size", "labels_per_class")


def defined(name: str | None = None, **own: Any) -> study.Study:
    return parse.define(name, parse.Changes(**own))


@pytest.mark.parametrize("name", parse.PRESETS)
def test_a_named_study_passes_its_own_checks(name: str) -> None:
    found = parse.preset(name)
    plan.check(found, START)
    runs = study.points(found)
    assert len(runs) == len({str(run) for run in runs})
    assert Counter(run.seed for run in runs) == dict.fromkeys(found.seeds, len(runs) // 3)


def test_the_files_of_presets_are_the_named_studies() -> None:
    files = Path(parse.__file__).parent.glob("presets/*.toml")
    assert sorted(path.stem for path in files) == sorted(parse.PRESETS)


def test_the_nine_studies_have_the_reports_values_and_its_best_among_them() -> None:
    assert len(parse.REPORT) == 9
    for name in parse.REPORT:
        found = parse.preset(name)
        assert (found.recipe, bool(found.finding)) == ("report", True)
        labels = [tuple(run.labels) for run in study.points(found)]
        assert tuple(found.best[factor] for factor in found.vary) in labels
    grid = parse.preset("cnn-lr-batch-size")
    assert grid.factors == "lr 0.01, 0.001, 0.0001, 1e-05; batch_size 8, 16, 32, 64, 128, 256"
    assert RECIPES["report"]["logistic"]["lr"] == 1e-4  # the base of the noise band


def test_the_first_seed_comes_first() -> None:
    runs = study.points(defined(model="cnn", vary=["dropout=0,0.5"], seeds=2))
    assert [(run.labels, run.seed) for run in runs] == [
        *((("0",), 0), (("0.5",), 0), (("0",), 1), (("0.5",), 1))
    ]


def test_values_of_the_command_line() -> None:
    assert parse.parse_factor("lr=1e-3,0.5,2") == ("lr", [0.001, 0.5, 2])
    assert parse.parse_factor("hidden=512,256/128") == ("hidden", [[512, 256], [128]])
    assert parse.parse_factor("freeze=true,False") == ("freeze", [True, False])
    assert parse.parse_factor("precision=no,bf16") == ("precision", ["no", "bf16"])
    ranged = parse.parse_factor("lr=1e-5..0.1:log")[1]
    assert ranged == study.Range(low=1e-5, high=0.1, log=True)


def test_an_option_narrows_widens_or_replaces_what_a_study_says() -> None:
    found = defined("mobilenetv2-freeze", vary=["backbone=trained"], seeds=2, settings={"lr": 0.5})
    assert [run.settings for run in study.points(found)] == [
        {"epochs": 12, "lr": 0.5, "freeze": False}
    ] * 2
    wider = defined("cnn-dropout", vary=["dropout=0,0.9", "lr=1,2"])
    assert wider.factors == "dropout 0, 0.9; lr 1, 2"
    other = defined("augmentations", model="mlp")
    assert (other.name, other.model) == ("augmentations-mlp", "mlp")


def test_a_file_is_a_study(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'model = "mlp"\nseeds = [3, 5]\n[settings]\nepochs = 2\n[vary]\nhidden = [[8, 4], [16]]\n'
        "[vary.noise]\nnone = {flip = 0.0, rotation = [0, 0]}\nmuch = {flip = 0.5}\n"
    )
    found = defined(str(tmp_path / "mine.toml"))
    plan.check(found, START)
    assert (found.name, found.seeds, found.recipe) == ("mine", (3, 5), "tuned")
    assert study.points(found)[0].settings == {
        **{"epochs": 2, "hidden": [8, 4], "flip": 0.0, "rotation": [0, 0]}
    }


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('model = "cnn"\nsedes = 3\n[vary]\nlr = [1]', "line 2: sedes: unknown key: did you mean"),
        ('model = "cnn"\n[vary]\n\nlr = {low=1, hihg=2}', "line 4: vary.lr.hihg: unknown key: did"),
        ('model = "cnn"\n[vary]\nlr = []', "line 3: vary.lr: needs at least one value"),
        ('model = "cnn"\n[vary]\nlr = "x"', "line 3: vary.lr: 'x': must be a list of values"),
        ('model = "cnn"\n[vary]\nlr = {low=3, high=1}', "line 3: vary.lr: 3..1: must be LOW..HIGH"),
        ('model = "cnn"\nseeds = 0\n[vary]\nlr = [1]', "line 2: seeds: 0: must be a number from 1"),
        ('model = "cnn"\nname = "../x"\n[vary]\nlr = [1]', "line 2: name: '../x': String should"),
        ('model = "cnn"\n', "vary: is missing"),
        ('model = "cnn"\nx = [1,\n', "is not TOML"),
        ("#" * 70_000, "is larger than 65,536 bytes"),
    ],
)
def test_a_typo_in_a_file_is_named_with_its_line_and_key(
    tmp_path: Path, text: str, error: str
) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError) as raised:
        parse.read(tmp_path / "mine.toml")
    assert error in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('model = "mlp"\n[settings]\nepohcs = 3\n[vary]\nlr = [1]', "line 3: unknown mlp setting"),
        ('model = "mlp"\n[vary]\n\ndorpout = [1]', "line 4: unknown mlp setting 'dorpout'"),
        ('recipe = "tunde"\nmodel = "mlp"\n[vary]\nlr = [1]', "line 1: unknown recipe 'tunde'"),
        ('model = "mpl"\n[vary]\nlr = [1]', "line 1: unknown model 'mpl': did you mean 'mlp'"),
        ('model = "mlp"\nname = "precision"\n[vary]\nlr = [1]', "the name of a built-in study"),
        (
            'model = "mlp"\nseeds = [0, 0]\n[vary]\nlr = [1]',
            "line 2: seeds: 0, 0: a seed is listed",
        ),
    ],
)
@pytest.mark.parametrize("command", ["show", "run"])
def test_what_is_wrong_in_a_file_is_said_with_its_line_by_every_command(
    cli: Any, tmp_path: Path, text: str, error: str, command: str
) -> None:
    (tmp_path / "mine.toml").write_text(text)
    code, _, err = cli("study", command, "mine.toml")
    assert (code, error in err, err.count("\n")) == (2, True, 1), err


def test_values_that_differ_have_labels_that_differ() -> None:
    close = defined(model="mlp", vary=["lr=0.12345671,0.12345672"], seeds=1)
    assert [point.labels for point in study.points(close)] == [("0.12345671",), ("0.12345672",)]
    assert study.label(0.1 + 0.2) == "0.30000000000000004"
    assert study.label(1e-5) == "1e-05"


def test_values_with_commas_are_told_apart_and_long_ones_are_wrapped(cli: Any) -> None:
    budgets = parse.preset("label-efficiency")
    assert "kmeans / kmeans, unlabelled / probe / " in budgets.factors
    assert budgets.factors.endswith("; labels_per_class 4, 10, 25, 50, 100, 450")
    for words in (("list",), ("show", "mlp-hidden")):
        with pytest.MonkeyPatch.context() as terminal:
            terminal.setenv("COLUMNS", "60")
            code, out, _ = cli("study", *words)
        assert (code, "…" in out, "1024" in out) == (0, False, True)
        assert max(map(len, out.splitlines())) <= 60


def test_only_the_reports_own_studies_have_its_findings() -> None:
    assert defined("logistic-lr", vary=["lr=1e-4,1e-3"], settings={"epochs": 2}).finding
    assert defined("logistic-lr", recipe="report").best
    for other in ({"recipe": "tuned"}, {"vary": ["flip=0,0.5"]}):
        found = defined("logistic-lr", **other)
        assert (bool(found.finding), found.best) == (True, {})  # told, but not compared
    found = defined("logistic-lr", model="mlp")
    assert (found.finding, found.best) == ("", {})


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_file_is_a_study_or_an_error_of_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "x.toml"
    path.write_bytes(b'model = "cnn"\n' + content)
    with contextlib.suppress(BenchError):
        parse.read(path)


@pytest.mark.parametrize(
    ("own", "error"),
    [
        ({"name": "logistic-rl"}, "unknown study 'logistic-rl': did you mean 'logistic-lr'"),
        (
            {"model": "logistic", "vary": ["dropout=0,0.5"]},
            "logistic has no option dropout: use it with",
        ),
        ({"model": "logistic", "vary": ["dorpout=0,1"]}, "unknown logistic setting 'dorpout'"),
        ({"model": "mlp", "vary": ["fold=0,1"]}, "a study cannot set or vary fold"),
        ({"model": "mlp", "vary": ["lr=0.1,1e-1"]}, "lr: 0.1 is listed twice"),
        ({"model": "mlp", "vary": ["lr=0.1", "lr=0.2"]}, "lr is varied twice"),
        (
            {"name": "mobilenetv2-freeze", "vary": ["freeze=true"]},
            "backbone and freeze both vary freeze",
        ),
        (
            {"model": "mlp", "vary": [f"{k}={','.join(map(str, range(1, 99)))}" for k in THREE]},
            "2,823,576 runs; the limit is 2,000",
        ),
        ({"model": "cnn", "vary": ["dorpout=0,1"]}, "'dorpout': did you mean 'dropout'"),
        ({"model": "cmn", "vary": ["lr=1"]}, "unknown model 'cmn': did you mean 'cnn'"),
        ({"model": "mlp", "vary": ["schedule=cosine,setp"]}, "'setp': did you mean 'step'"),
        ({"model": "mlp", "vary": ["optimizer=adam,sgdd"]}, "'sgdd': did you mean 'sgd"),
        ({"model": "mlp", "vary": ["lr=0.1,-1"]}, "lr = -1: must be greater than 0"),
        ({"model": "mlp", "vary": ["dropout=0,much"]}, "option dropout = 'much' of model 'mlp'"),
        ({"model": "mlp", "vary": ["seed=1,2"]}, "cannot set or vary seed: use --seeds"),
        (
            {"model": "mlp", "vary": ["val_fraction=0,0.1"]},
            "a study compares on validation images; raise it",
        ),
        ({"model": "mlp", "vary": ["lr=0.1,,2"]}, "a value is empty"),
        ({"model": "mlp", "vary": ["lr"]}, "must be NAME=VALUE"),
        ({"model": "mlp", "vary": ["lr=1..2"]}, "lr is a range: list its values"),
        ({"name": "cnn-dropout", "settings": {"dropout": 0.3}}, "both sets and varies dropout"),
        ({"name": "mobilenetv2-freeze", "vary": ["backbone=frozne"]}, "did you mean 'frozen'"),
        ({"name": "precision", "vary": ["lr=0.1"], "model": "mpl"}, "unknown model 'mpl'"),
        ({"model": "mlp"}, "Missing study name"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_run(own: dict[str, Any], error: str) -> None:
    def prepared() -> None:
        found = defined(own.pop("name", None), **own)
        plan.check(found, START)
        study.points(found)

    with pytest.raises(UsageError) as raised:
        prepared()
    assert error in str(raised.value)
