"""The transfer section: several seeds, the paired difference, one task over data sets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.reporting import write_report

Make = Callable[..., Path]


def row(init: str, top1: float, against: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "init": init,
        "student": "kd",
        "metrics": {"top1_percent": top1},
        "spread": {"top1_percent": 0.25},
        "per_seed": [{"seed": seed, "metrics": {"top1_percent": top1}} for seed in range(3)],
        "matched_percent": 100.0,
        "against": against,
    }


def write_stage(folder: Path, name: str, interval: list[float] | None, top1: float) -> None:
    difference = {"mean": -1.5, "interval": interval, "pairs": 3}
    against = {"reference": "alone", "differences": {"top1_percent": difference}}
    values = {
        "task": "linear_probe",
        "protocol": "top-1 accuracy",
        "headline": "top1_percent",
        "rows": [row("distilled", top1, against), row("alone", top1 + 1.5, None)],
        "data": {"name": "image_folder", "train_images": 100, "test_images": 50},
        "pictures": [],
    }
    stage = folder / "transfer" / name
    stage.mkdir(parents=True)
    content = {"stage": f"transfer/{name}", "fingerprint": "x", "values": values, "measured": {}}
    (stage / "result.json").write_text(json.dumps(content))
    for seed in (10, 2):
        place = stage / "distilled" / f"seed-{seed}"
        place.mkdir(parents=True)
        lines = [json.dumps({"epoch": e, "loss": float(seed)}) for e in (1, 2)]
        (place / "metrics.jsonl").write_text("\n".join(lines))


def test_spread_difference_and_seeds(make_run: Make) -> None:
    folder = make_run(stages=("teacher", "distill"))
    write_stage(folder, "stl10", [-2.0, -1.0], 61.125)
    write_report(folder)
    text = (folder / "report.md").read_text()
    assert "Difference to alone (95 % interval)" in text
    line = next(line for line in text.splitlines() if line.startswith("| distilled |"))
    assert "61.12 (± 0.25)" in line
    assert "\N{MINUS SIGN}1.50 (\N{MINUS SIGN}2.00 to \N{MINUS SIGN}1.00)" in line
    assert "| 3 |" in line
    reference = next(line for line in text.splitlines() if line.startswith("| alone |"))
    assert "reference" in reference
    assert "over data sets" not in text
    assert (folder / "figures" / "transfer_stl10_loss.png").is_file()


def test_no_interval_is_said(make_run: Make) -> None:
    folder = make_run(stages=("teacher", "distill"))
    write_stage(folder, "stl10", None, 61.0)
    write_report(folder)
    assert "\N{MINUS SIGN}1.50 (no interval)" in (folder / "report.md").read_text()


def test_one_task_over_data_sets_is_one_table(make_run: Make) -> None:
    folder = make_run(stages=("teacher", "distill"))
    write_stage(folder, "stl10", [-2.0, -1.0], 61.0)
    write_stage(folder, "tinyimagenet", [-2.0, -1.0], 33.0)
    write_report(folder)
    text = (folder / "report.md").read_text()
    assert "| Initialisation | stl10 (Top-1, %) | tinyimagenet (Top-1, %) |" in text
    assert "| distilled | 61.00 (± 0.25) | 33.00 (± 0.25) |" in text
    assert "| alone | 62.50 (± 0.25) | 34.50 (± 0.25) |" in text
