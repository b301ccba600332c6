"""A recipe under torchrun with two processes gives what one process gives.

Computed in float64: float32 sums in another order drift apart within a few steps of a network
with batch norm, as far as two runs of one process do whose first weights differ by rounding.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from compress.comparison import read_predictions
from compress.storage.files import read_json, read_tensors
from tests.processes import run, torchrun
from tests.run.test_pipeline import SCENES, TINY

# 82 images in batches of 19: the last has 6, and one process has a row more than the other.
TRAIN = {"epochs": 2, "lr": 0.002, "batch_size": 19}
METHODS = ("kd", "simkd", "rkd", "crd", "simkd_joint", "simkd_sequential")
TASKS = ("linear_probe", "segmentation", "detection")
RECIPE: dict[str, Any] = {
    "data": {**TINY["data"], "train_images": 82, "test_images": 30},
    "teacher": {  # in parts whose images batch norm sees together
        "model": "resnet8",
        "train": {"epochs": 2, "lr": 0.02, "batch_size": 19, "accumulate": 2},
    },
    "student": {"model": "resnet8"},
    "distill": {
        "method": "kd",
        "train": TRAIN,
        "compare": [
            "simkd",
            "rkd",
            {"name": "crd", "negatives": 16},
            "simkd_joint",
            "simkd_sequential",
        ],
    },
    "account": {"latency": {"batch_sizes": [1], "rounds": 1, "warmup": 1}},
    "export": None,  # ONNX Runtime has no float64 convolution
    "transfer": [
        {
            "task": task,
            "init": ["distilled"],
            "data": {"name": "digit_scenes", "classes": 3} if task == "linear_probe" else SCENES,
            "train": {"epochs": 1, "lr": 0.001, "batch_size": 3},
        }
        for task in TASKS
    ],
}
IN_FLOAT64 = """
import sys, torch
torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double
from compress import pipeline
sys.exit(pipeline.main())
"""
LOSSES, WEIGHTS = 1e-8, 1e-6  # relative; of weights to the largest of their tensor


def _run(folder: Path, processes: int, *options: str) -> tuple[int, str]:
    """Run the recipe of a folder; the exit code and what was printed."""
    code = folder / "in_float64.py"
    code.write_text(IN_FLOAT64)
    arguments = [str(code), str(folder / "tiny.yaml"), "--workers", "0", "--device", "cpu"]
    output = folder / f"output-{processes}.txt"
    if processes == 1:
        return run([*arguments, *options], output)
    return torchrun(processes, [*arguments, *options], output)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The run directories of one process and of two, and what the two printed."""
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    for processes in (1, 2):
        exit_code, printed = _run(folder, processes, "--out", str(folder / str(processes)))
        assert exit_code == 0, printed
    return folder / "1", folder / "2", printed


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


STAGES = ["teacher/0", *(f"distill/{name}" for name in METHODS)]


@pytest.mark.parametrize("stage", [*STAGES, "distill/simkd_sequential/phase-classifier"])
def test_trainings_are_as_one_process_has_them(runs: tuple[Path, Path, str], stage: str) -> None:
    one, two, _ = (*(run / stage for run in runs[:2]), None)
    assert len(_rows(one)) == len(_rows(two)) == 2
    for expected, got in zip(_rows(one), _rows(two), strict=True):
        assert got["terms"] == pytest.approx(expected["terms"], rel=LOSSES)
        assert got["top1_percent"] == expected["top1_percent"]
    if "phase" not in stage:
        saved, again = (read_predictions(folder / "predictions.npz") for folder in (one, two))
        assert saved.of_same_images(again) and saved.top1.tolist() == again.top1.tolist()
    before, after = (read_tensors(f / "checkpoint.safetensors")[0] for f in (one, two))
    assert set(before) == set(after)
    for name, value in before.items():
        largest = float(value.double().abs().max())
        torch.testing.assert_close(after[name], value, rtol=0, atol=WEIGHTS * largest, msg=name)


@pytest.mark.parametrize("task", TASKS)
def test_transfer_is_trained_and_judged_on_every_image(
    runs: tuple[Path, Path, str], task: str
) -> None:
    one, two = (read_json(run / f"transfer/{task}/result.json")["values"] for run in runs[:2])
    assert one["data"] == two["data"]
    assert set(one["rows"][0]["metrics"]) == set(two["rows"][0]["metrics"])
    if task == "linear_probe":  # the others draw regions and dropout, each process its own
        metrics = one["rows"][0]["metrics"]
        assert two["rows"][0]["metrics"] == pytest.approx(metrics, abs=1e-9)
        first, second = (_rows(run / f"transfer/{task}/distilled/seed-0") for run in runs[:2])
        assert second[0]["terms"] == pytest.approx(first[0]["terms"], rel=LOSSES)


def _lines(log: Path) -> list[str]:
    """A log without the reports of a run that goes on, which depend on the clock."""
    lines = log.read_text().splitlines()
    return [line for line in lines if "report so far" not in line]


def test_one_process_writes_and_speaks(runs: tuple[Path, Path, str]) -> None:
    one, two, printed = runs
    lines, alone = (_lines(folder / "log.txt") for folder in (two, one))
    assert len(lines) == len(alone)
    assert printed.count("distill/crd epoch 2/2") == 1
    assert printed.count("report: ") == 1
    files = [
        {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()} for run in runs[:2]
    ]
    assert files[0] == files[1]


def test_one_process_goes_on_with_what_two_did(runs: tuple[Path, Path, str]) -> None:
    _, two, _ = runs
    before = {p: p.stat().st_mtime_ns for p in two.rglob("*.safetensors")}
    exit_code, printed = _run(two.parent, 1, "--out", str(two))
    assert exit_code == 0, printed
    assert printed.count("done before, skipped") == 1 + len(METHODS) + 2 + len(TASKS)
    assert before == {p: p.stat().st_mtime_ns for p in two.rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--frehs", "teacher"], "unrecognized arguments"),  # by the command's parser
        (["--until", "nothing"], "unknown stage 'nothing'"),  # by every process
        (
            ["--set", "teacher.train.lr=10000", "--set", "teacher.train.epochs=20"],
            "error: teacher: the loss is no longer finite",
        ),
    ],
)
def test_a_mistake_gets_one_message(tmp_path: Path, options: list[str], words: str) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    exit_code, printed = _run(tmp_path, 2, "--out", str(tmp_path / "run"), *options)
    assert exit_code == 2
    assert printed.count(words) == 1, printed
    assert "Traceback" not in printed
