"""A complete run directory with invented numbers, as the stages would leave it."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from compress.reporting import write_report

RECIPE = """# SimKD, resnet20 -> resnet8, five classes
seed: 0
trials: 2
data: {name: digits}
teacher: {model: resnet20, train: {epochs: 12, lr: 0.05}}
student: {model: resnet8}
distill:
  method: {name: simkd, reduction: 2}
  train: {epochs: 8, lr: 0.05}
  compare: [none, kd]
"""
RESOLVED = """
student: {model: {name: resnet8}}
distill:
  method: {name: simkd, reduction: 2}
  compare: [{name: none}, {name: kd}, {name: crd, label: crd-14}]
"""
TOP1 = {
    ("none", 0): 92.67,
    ("none", 1): 91.33,
    ("kd", 0): 93.33,
    ("kd", 1): 94.67,
    ("crd-14", 0): 93.67,
    ("crd-14", 1): 94.33,
    ("simkd", 0): 96.67,
    ("simkd", 1): 97.33,
}
METHOD_BYTES = {"none": 0, "kd": 0, "crd-14": 51_344_000, "simkd": 47_040}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def stage(folder: Path, name: str, values: Any, measured: Any) -> None:
    result = {"stage": name, "fingerprint": "ab" * 32, "values": values, "measured": measured}
    write(folder / name / "result.json", result)


def history(path: Path, epochs: int, last: float, scale: float = 1.0) -> None:
    rows = []
    for epoch in range(1, epochs + 1):
        share = 1 - 0.55**epoch + 0.55**epochs
        top1 = last * (share - 0.03 * (epoch % 3 == 1) * (epoch < epochs))
        loss = scale * (0.15 + 2.1 * 0.6**epoch)
        rows.append({"epoch": epoch, "lr": 0.05, "loss": loss, "top1_percent": top1})
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def teacher(folder: Path, slow: float) -> None:
    row = {
        "label": "teacher",
        "model": "resnet20",
        "source": "trained",
        "top1_percent": 97.67,
        "best_on_test_top1_percent": 98.0,
        "best_on_test_epoch": 11,
        "epochs": 12,
        "test_images": 300,
    }
    stage(folder, "teacher", {"teachers": [row]}, {"seconds": 121.5 * slow})
    history(folder / "teacher/0/metrics.jsonl", 12, 97.67)


def distill(folder: Path, slow: float) -> None:
    weights = {"none": (1, 0, 0), "kd": (1, 0, 1), "crd-14": (1, 0, 0.8), "simkd": (0, 0, 1)}
    for (label, trial), top1 in TOP1.items():
        name = f"distill/{label}" + (f"-trial{trial}" if trial else "")
        method: dict[str, Any] = {"name": label.removesuffix("-14")}
        if label == "simkd":
            method["reduction"] = 2
        values = {
            "label": label,
            "trial": trial,
            "seed": trial,
            "method": method,
            "weights": dict(zip(("ce", "kd", "method"), weights[label], strict=True)),
            "top1_percent": top1,
            "best_on_test_top1_percent": top1 + 0.33,
            "selected_epoch": 8,
            "best_on_test_epoch": 7,
            "epochs": 8,
            "test_images": 300,
            "recommended_candidate": True,
        }
        memory = {"step_bytes": 25_430_000 + trial, "method_bytes": METHOD_BYTES[label]}
        measured = {"seconds": (40.25 + trial) * slow, "memory": {**memory, "batch": 64}}
        stage(folder, name, values, measured)
        scale = 0.08 if label == "simkd" else 1.2 if label == "kd" else 0.9
        history(folder / name / "metrics.jsonl", 8, top1, scale)


def fuse(folder: Path, slow: float) -> None:
    students = [
        {
            "label": label,
            "trial": trial,
            "images": 256,
            "fused_max_abs": 0.0,
            "folded_max_abs": 4.77e-06,
            "folded": 9,
            "not_folded": [{"module": "bn1", "reason": "no single preceding convolution"}],
        }
        for label, trial in TOP1
    ]
    stage(folder, "fuse", {"tolerance": 1e-3, "students": students}, {"seconds": 2.1 * slow})


def network(label: str, role: str, parameters: int, macs: int, **more: Any) -> dict[str, Any]:
    return {
        "label": label,
        "role": role,
        "parameters": parameters,
        "macs": macs,
        "flops": 2 * macs,
        "uncounted_operators": {"batch_norm": 19, "relu": 19},
        "size_bytes": 4 * parameters + 12_345,
        "peak_activation_bytes": 524_288,
        **more,
    }


def account(folder: Path, slow: float) -> None:
    def deployed(label: str, parameters: int, macs: int, projector: int) -> dict[str, Any]:
        ratio = 100 * (1 - parameters / 269_850)
        return network(
            label,
            "deployed",
            parameters,
            macs,
            projector_parameters=projector,
            pruning_ratio_percent=ratio,
            plain_pruning_ratio_percent=71.3,
            pruning_ratio_cost_points=71.3 - ratio,
            projector_to_student_percent=100 * projector / 77_850,
        )

    networks = [
        network("teacher", "teacher", 269_850, 40_551_808),
        network("student", "student", 77_850, 12_402_048),
        *(deployed(label, 77_850, 12_402_048, 0) for label in ("none", "kd", "crd-14")),
        deployed("simkd", 89_610, 13_178_304, 11_760),
    ]
    latency = {
        row["label"]: {
            "1": {"median_ms": 2.31 * slow, "p95_ms": 2.98 * slow, "rounds": 20},
            "64": {"median_ms": 41.17 * slow, "p95_ms": 47.43 * slow, "rounds": 20},
        }
        for row in networks
    }
    protocol = {"device": "cpu", "threads": 2, "dtype": "float32", "warmup": 3, "rounds": 20}
    measured = {"latency": latency, "protocol": protocol, "seconds": 12.75 * slow}
    values = {
        "input_shape": [3, 32, 32],
        "reference_teacher": "teacher",
        "peak_activation_batch": 1,
        "networks": networks,
    }
    stage(folder, "account", values, measured)


def export(folder: Path, slow: float) -> None:
    values = {
        "student": "simkd",
        "folder": "bundle",
        "raw_pixels": False,
        "opset": 18,
        "size_bytes": 371_200,
        "tolerance": 1e-3,
        "max_abs_difference": 3.34e-06,
        "logit_scale": 14.25,
        "top1_agreement_percent": 100.0,
        "onnx_top1_percent": 96.67,
        "torch_top1_percent": 96.67,
        "mean_abs_difference": 4.1e-07,
        "images": 300,
        "encoder": {"size_bytes": 300_100, "dynamic_size": True},
    }
    values["int8"] = {**values, "size_bytes": 96_500, "onnx_top1_percent": 96.33}
    latency = {
        name: {
            "1": {"median_ms": share * 0.18 * slow, "p95_ms": share * 1.12 * slow, "rounds": 20},
            "64": {"median_ms": share * 50 * slow, "p95_ms": share * 55 * slow, "rounds": 20},
        }
        for name, share in (("torch", 1), ("ONNX Runtime", 0.4), ("ONNX Runtime, int8", 0.2))
    }
    protocol = {"device": "cpu", "threads": 2, "dtype": "float32", "warmup": 3, "rounds": 20}
    timed = {"latency": latency, "protocol": protocol, "not_compiled": "no compiler"}
    stage(folder, "export", values, {**timed, "seconds": 6.0})


def transfer(folder: Path, slow: float) -> None:
    name = "transfer/detection"
    rows = [
        {
            "init": init,
            "student": "simkd",
            "metrics": {"ap75_percent": ap50 - 21.5, "ap50_percent": ap50},
            "matched_percent": matched,
        }
        for init, ap50, matched in (("distilled", 71.42, 100.0), ("scratch", 58.13, 0.0))
    ]
    values = {
        "task": "detection",
        "protocol": "AP at IoU 0.5 over all classes, last epoch",
        "headline": "ap50_percent",
        "rows": rows,
        "data": {"name": "digit_scenes", "train_images": 1200, "test_images": 200},
        "pictures": ["pictures/distilled.png", "../../secret.png"],
    }
    stage(folder, name, values, {"seconds": 3723.4 * slow})
    picture = io.BytesIO()
    Image.linear_gradient("L").resize((240, 160)).convert("RGB").save(picture, format="PNG")
    (folder / name / "pictures").mkdir()
    (folder / name / "pictures/distilled.png").write_bytes(picture.getvalue())
    (folder / "secret.png").write_bytes(picture.getvalue())
    for init, last in (("distilled", 71.42), ("scratch", 58.13)):
        lines = [
            json.dumps({"epoch": e, "loss": 2.4 * 0.8**e, "ap50_percent": last * (1 - 0.6**e)})
            for e in range(1, 9)
        ]
        write(folder / name / init / "metrics.jsonl", "\n".join(lines) + "\n")


STAGES: dict[str, Callable[[Path, float], None]] = {
    "teacher": teacher,
    "distill": distill,
    "fuse": fuse,
    "account": account,
    "export": export,
    "transfer": transfer,
}


def fake_run(folder: Path, slow: float = 1.0, stages: tuple[str, ...] = tuple(STAGES)) -> Path:
    write(folder / "run.json", {"name": "simkd_digits"})
    write(folder / "recipe.yaml", RECIPE)
    write(folder / "resolved.yaml", RESOLVED)
    versions = {"python": "3.11.7", "torch": "2.15.0"}
    write(folder / "environment.json", {"versions": versions, "cpu": "Example CPU", "threads": 2})
    for name in stages:
        STAGES[name](folder, slow)
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """make_run(name, slow=..., stages=...) -> a run directory of invented results."""

    def make(name: str = "run", **settings: Any) -> Path:
        return fake_run(tmp_path / name, **settings)

    return make


@pytest.fixture(scope="session")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run with its report, for tests that only read."""
    folder = fake_run(tmp_path_factory.mktemp("complete"))
    write_report(folder)
    return folder


@pytest.fixture
def change() -> Callable[[Path, str, Callable[[Any], None]], None]:
    """change(run folder, stage, edit) rewrites a result after edit(values)."""

    def apply(folder: Path, name: str, edit: Callable[[Any], None]) -> None:
        path = folder / name / "result.json"
        result = json.loads(path.read_text())
        edit(result["values"])
        write(path, result)

    return apply
