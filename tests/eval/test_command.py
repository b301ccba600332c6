"""The command of the transfer tasks: options, what is written, resuming, messages."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from compress import models
from compress.console.messages import console
from compress.recipe import Named
from compress.recipe.schema import TransferTrain
from eval.transfer import command
from eval.transfer import options as options_module
from eval.transfer.command import main
from eval.transfer.options import recognise_dataset
from eval.transfer.request import read_request
from eval.transfer.stage import DATASETS, TASKS
from eval.transfer.tables import table_of
from tests.eval.runs import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture
def crops(scenes: Callable[..., Path]) -> Path:
    return scenes() / "crops"


def probe(run: Path, crops: Path, *more: str) -> int:
    fast = ["--epochs", "2", "--batch-size", "4", "--device", "cpu", "--out", str(run.parent / "o")]
    return main("linear_probe", [str(run), "--data", str(crops), *fast, *more])


def test_whole_command(run: Path, crops: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert probe(run, crops, "--seeds", "2") == 0
    out = run.parent / "o"
    result = json.loads((out / "result.json").read_text())["results"]["crops"]
    assert [row["init"] for row in result["rows"]] == ["distilled", "alone", "scratch"]
    assert [row["matched_percent"] for row in result["rows"]] == [100, 100, 0]
    assert all(len(row["per_seed"]) == 2 for row in result["rows"])
    assert result["origins"]["kd"]["architecture"]["name"] == "resnet8"
    table = (out / "table.md").read_text()
    assert "n = 2" in table and "difference to alone" in table and result["protocol"] in table
    assert table.splitlines()[0].count("|") == table.splitlines()[3].count("|")

    # A second time nothing is trained; more seeds or inits train only what is new.
    outcome = out / "transfer/crops/distilled/seed-0/outcome.json"
    before = outcome.stat().st_mtime_ns
    assert probe(run, crops, "--seeds", "2") == 0
    assert probe(run, crops, "--seeds", "3", "--init", "distilled", "teacher") == 0
    assert outcome.stat().st_mtime_ns == before
    rows = json.loads((out / "result.json").read_text())["results"]["crops"]["rows"]
    assert [row["init"] for row in rows] == ["distilled", "teacher"]
    assert len(rows[0]["per_seed"]) == 3 and not (out / "superseded").exists()

    # Another training takes another folder; the old one is kept.
    capsys.readouterr()
    assert probe(run, crops, "--seeds", "2", "--lr", "0.1") == 0
    assert "redone (changed: train.lr (0.05 -> 0.1))" in capsys.readouterr().out
    assert (out / "superseded/001-transfer-crops/distilled/seed-0/outcome.json").is_file()


def trained(out: Path) -> dict[str, int]:
    """When the trainings in place were finished."""
    outcomes = (out / "transfer").glob("*/*/seed-*/outcome.json")
    return {str(path.parent.relative_to(out / "transfer")): path.stat().st_mtime_ns
            for path in outcomes}  # fmt: skip


def found(out: Path) -> Any:
    return json.loads((out / "result.json").read_text())["results"]


def test_a_grown_command_reuses_all_and_finds_what_it_would_alone(
    run: Path, scenes: Callable[..., Path], tmp_path: Path
) -> None:
    """First one origin, seed and data set, then several of each, then fewer again."""
    one, two, out = scenes() / "crops", scenes("more", seed=1) / "crops", tmp_path / "o"
    torch.save(models.build("resnet8", num_classes=3).state_dict(), tmp_path / "plain.pth")
    plain = f"resnet8@{tmp_path / 'plain.pth'}"
    assert probe(run, one, "--seeds", "1", "--init", "distilled") == 0
    small, before = found(out), trained(out)
    assert list(before) == ["crops/distilled/seed-0"]

    grown = [str(run), plain, "--epochs", "2", "--batch-size", "4", "--device", "cpu",
             "--data", str(one), str(two), "--seeds", "2",
             "--init", "distilled", "resnet8-plain"]  # fmt: skip
    assert main("linear_probe", [*grown, "--out", str(out)]) == 0
    large = trained(out)
    assert before.items() < large.items() and len(large) == 8
    assert main("linear_probe", [*grown, "--out", str(tmp_path / "new")]) == 0
    assert found(out) == found(tmp_path / "new")

    assert probe(run, one, "--seeds", "1", "--init", "distilled") == 0
    assert found(out) == small and trained(out) == large
    assert not (out / "superseded").exists()


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A run whose student has the same label and architecture, and other weights."""
    folder, weights = write_run(tmp_path / "other"), "student.safetensors"
    (folder / "distill/none" / weights).replace(folder / "distill/kd" / weights)
    (folder / "distill/none/student.json").unlink()
    return folder


def test_runs_of_one_label_in_one_directory(
    run: Path, other: Path, crops: Path, tmp_path: Path
) -> None:
    """Each gets its own result, and back what it had."""
    options = ["--seeds", "1", "--init", "distilled", "scratch"]
    shared = ["--epochs", "2", "--batch-size", "4", "--device", "cpu", "--data", str(crops)]
    assert probe(run, crops, *options) == 0
    out, first = tmp_path / "o", found(tmp_path / "o")
    scratch = trained(out)["crops/scratch/seed-0"]
    for folder in (out, tmp_path / "new"):
        assert main("linear_probe", [str(other), *shared, *options, "--out", str(folder)]) == 0
    assert found(out) == found(tmp_path / "new") != first
    assert trained(out)["crops/scratch/seed-0"] == scratch
    assert [p.name for p in (out / "superseded").iterdir()] == [
        "001-transfer-crops-distilled-seed-0"
    ]
    assert probe(run, crops, *options) == 0
    assert found(out) == first and len(list((out / "superseded").iterdir())) == 1


def test_an_interrupted_run_leaves_no_result_over_trainings_of_another(
    run: Path, other: Path, crops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run has its result again when its trainings are in place again."""
    out, options = run.parent / "o", ["--seeds", "1", "--init", "distilled"]
    assert probe(run, crops, *options) == 0
    first, outcome = found(out), out / "transfer/crops/distilled/seed-0/outcome.json"
    kept = outcome.read_text()

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("eval.linear_probe.task.fine_tune", killed)
        assert probe(other, crops, *options) == 130
    assert not outcome.exists()
    assert probe(run, crops, *options) == 0
    assert found(out) == first and outcome.read_text() == kept


def test_networks_from_several_places(run: Path, crops: Path, tmp_path: Path) -> None:
    """A bundle's folder brings its run along; a plain file stands beside it under its name."""
    bundle = run / "export" / "bundle"
    bundle.parent.mkdir()
    (run / "distill" / "kd").rename(bundle)
    torch.save(models.build("resnet8", num_classes=3).state_dict(), tmp_path / "mine.pth")
    given = f"resnet8@{tmp_path / 'mine.pth'}"
    code = main(
        "neighbours",
        [str(bundle), given, "--data", str(crops), "--k", "3", "--seeds", "1",
         "--out", str(tmp_path / "two"), "--device", "cpu"],
    )  # fmt: skip
    assert code == 0
    rows = json.loads((tmp_path / "two/result.json").read_text())["results"]["crops"]["rows"]
    assert [row["init"] for row in rows] == ["distilled", "alone", "resnet8-mine", "scratch"]
    assert [row["student"] for row in rows] == ["kd", "none", "resnet8-mine", "kd"]
    assert [row["matched_percent"] for row in rows] == [100, 100, 100, 0]


def test_weights_alone_inside_a_runs_folder(run: Path, crops: Path, tmp_path: Path) -> None:
    """They need the model that is told; the run's students stand beside them."""
    torch.save(models.build("resnet8", num_classes=3).state_dict(), run / "mine.pth")
    given = [str(run / "mine.pth"), str(run / "distill" / "kd"), "--model", "resnet8"]
    options = ["--data", str(crops), "--k", "3", "--seeds", "1", "--device", "cpu"]
    assert main("neighbours", [*given, *options, "--out", str(tmp_path / "o")]) == 0
    rows = found(tmp_path / "o")["crops"]["rows"]
    assert [(row["init"], row["student"]) for row in rows] == [
        ("distilled", "resnet8-mine"), ("alone", "none"), ("kd-2", "kd-2"),
        ("scratch", "resnet8-mine"),
    ]  # fmt: skip


def test_what_is_compared_to_nothing_has_no_column_for_it() -> None:
    row = {
        "init": "none", "student": "none", "metrics": {"top1_percent": 60.0}, "spread": None,
        "per_seed": [{}], "matched_percent": 100.0, "against": None,
    }  # fmt: skip
    values = {"headline": "top1_percent", "rows": [row]}
    one, two = table_of({"stl10": values}), table_of({"stl10": values, "tiny": values})
    assert [column.header for column in one.columns] == ["init", "student", "top1 %", "loaded %"]
    assert one.rows == [["none", "none", "60.00", "100.0"]]
    assert [column.header for column in two.columns] == ["init", "stl10: top1 %", "tiny: top1 %"]
    assert two.rows == [["none", "60.00", "60.00"]]


def test_table_of_several_data_sets_is_students_by_data() -> None:
    def values(shift: float) -> dict[str, Any]:
        difference = {"mean": 2.0, "interval": [1.0, 3.0], "pairs": 3}
        against = {"reference": "alone", "differences": {"top1_percent": difference}}
        rows = [
            {
                "init": init,
                "student": init,
                "metrics": {"top1_percent": value + shift},
                "spread": {"top1_percent": 0.5},
                "per_seed": [{}] * 3,
                "matched_percent": 100.0,
                "against": found,
            }
            for init, value, found in (("distilled", 62.0, against), ("alone", 60.0, None))
        ]
        return {"headline": "top1_percent", "rows": rows}

    table = table_of({"stl10": values(0), "tiny": values(-30)})
    assert len(table.columns) == 5 and table.columns[1].header == "stl10: top1 %"
    assert table.rows[0] == ["distilled", "62.00 ± 0.50 (n = 3)", "+2.00 [+1.00, +3.00]",
                             "32.00 ± 0.50 (n = 3)", "+2.00 [+1.00, +3.00]"]  # fmt: skip
    assert table.rows[1][2] == "reference"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--init", "distiled"], "init 'distiled' needs"),
        (["--seeds", "0"], "seeds: input should be greater than 0"),
        (["--solver", "adam"], "task.solver: input should be 'sgd' or 'lbfgs', got 'adam'"),
        (["--device", "abacus"], "--device abacus cannot be used here"),
        (["--dataset", "stl10"], "crops/train_X.bin not found"),
        (["--classes", "many"], "data.classes"),
        (["--lr", "fast"], "train.lr: input should be a valid number, got 'fast'"),
        (["--schedule", "polly"], "train.schedule: unknown name 'polly'; known: multistep"),
        (["--schedule", "{name: poly, powers: 2}"], "train.schedule.powers: unknown key"),
        (["--schedule", "{name: multistep, warmup: 2}"], "train.schedule: warmup is a share"),
        (["--schedule", "{name: poly"], "train.schedule is not readable as YAML"),
        (["--optimizer", "adam"], "train.optimizer: unknown optimiser 'adam'; known: sgd, adamw"),
        (["--precision", "half"], "train.precision: input should be 'float32'"),
        (["--accumulate", "2"], "train.accumulate: transfer tasks take their batches whole"),
    ],
)
def test_mistakes_are_told_in_words(
    run: Path, crops: Path, more: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_width", 300)
    with console.capture() as capture:
        assert probe(run, crops, *more) == 2
    printed = capture.get()
    assert message in printed and "Traceback" not in printed


def test_no_origin_no_data(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([str(run)], "give --data DIR"),
        ([str(run), "--data", "nowhere"], "folder 'nowhere' not found"),
        ([str(run), "--data", str(tmp_path / "empty")], "is none that is recognised"),
        (["nobody", "--dataset", "digit_scenes"], "'nobody' is no encoder"),
    ):
        assert main("linear_probe", arguments) == 2
        assert message in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_keyword_of_a_task_is_an_option(
    task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(task, ["--help"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    for function in (TASKS[task], *DATASETS[task].values()):
        for name in options_module.signatures.arguments_of(function):
            assert name == "root" or f"-{name.replace('_', '-')} " in printed, name
    for name in TransferTrain.model_fields:
        assert re.search(rf"^  --{name.replace('_', '-')}\W.*?default: ", printed, re.M | re.S), (
            name
        )


def test_every_part_of_a_training_can_be_told(run: Path) -> None:
    told = ["--iterations", "7", "--lr", "1e-2", "--batch-size", "2", "--optimizer", "adamw",
            "--momentum", "0", "--no-nesterov", "--weight-decay", "0", "--precision", "bfloat16",
            "--schedule", "{name: multistep, milestones: [0.5, 1], warmup: 0.1}"]  # fmt: skip
    options = command.parser("detection").parse_args(
        [str(run), "--dataset", "digit_scenes", "--device", "cpu", *told]
    )
    train = read_request("detection", options).part.train
    assert train == TransferTrain(
        iterations=7, lr=0.01, batch_size=2, optimizer=Named(name="adamw"), momentum=0,
        nesterov=False, weight_decay=0, precision="bfloat16", epochs=1,
        schedule=Named.model_validate(
            {"name": "multistep", "milestones": [0.5, 1], "warmup": 0.1}),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "hint", "expected"),
    [
        (["3"], int, 3),
        (["3"], str, "3"),
        (["null"], int | None, None),
        (["1e-4"], float, 1e-4),
        (["sgd"], Literal["sgd", "lbfgs"], "sgd"),
        (["16", "24"], tuple[int, ...], [16, 24]),
        (["16"], tuple[int, ...] | None, [16]),
        (["96"], int | tuple[int, ...] | None, 96),
        (["a", "1"], tuple[str, ...], ["a", "1"]),
        (True, bool, True),
    ],
)
def test_words_are_read_by_the_type(given: Any, hint: Any, expected: Any) -> None:
    assert options_module._read(given, hint, "x") == expected


@pytest.mark.parametrize(
    ("task", "files", "expected"),
    [
        ("linear_probe", ["train/a/1.png", "test/a/1.png"], "image_folder"),
        ("linear_probe", ["stl10_binary/train_X.bin"], "stl10"),
        ("neighbours", ["train/n1/images/1.JPEG", "val/images/1.JPEG", "val/val_annotations.txt"],
         "tiny_imagenet"),
        ("detection", ["ImageSets/Main/train.txt", "Annotations/1.xml"], "voc"),
        ("detection", ["Annotations/1.xml", "JPEGImages/1.jpg"], "boxes"),
        ("detection", ["annotations/instances_train.json", "train/1.jpg"], "coco"),
        ("segmentation", ["SegmentationClass/1.png", "JPEGImages/1.jpg"], "voc_segmentation"),
    ],
)  # fmt: skip
def test_layouts_are_recognised(tmp_path: Path, task: str, files: list[str], expected: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert recognise_dataset(task, tmp_path) == expected
