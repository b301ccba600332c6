"""A run directory, a checkpoint, a bundle and a cache that version 0.1.0 wrote at commit dbae939.

`runs.tar.xz` holds `compat.yaml`, its finished run in `run/` (report, pictures and generated data
left out), and in `stopped-kd/` the folder of the same student, stopped after two of three epochs.
The networks are those of `tiny.py` (447 and 1,467 parameters), which must stay as it is, since its
SHA-256 stands in the archive.
"""

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from compress import pipeline
from compress.model_files import load_student
from compress.models import user_code
from compress.storage.files import read_json
from tests.quick import quick_commands

HERE = Path(__file__).parent
EARLY = ("teacher", "distill/simkd", "distill/none", "distill/kd")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive's content; the networks' code lies where the recipe says, seen from here."""
    with tarfile.open(HERE / "runs.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "tests/compat").mkdir(parents=True)
    shutil.copy(HERE / "tiny.py", tmp_path / "tests/compat")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(folder: Path, *options: str) -> int:
    recipe = str(folder / "compat.yaml")
    with quick_commands():
        return pipeline.main([recipe, "--out", str(folder / "run"), "--workers", "0", *options])


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_finished_run_is_skipped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.read_bytes() for p in (folder / "run/distill").rglob("*.safetensors")}
    assert run(folder, "--until", "account") == 0
    printed = capsys.readouterr().out
    for stage in (*EARLY, "fuse", "account"):
        assert f"{stage}: done before, skipped" in printed
    assert {p: p.read_bytes() for p in before} == before
    assert not (folder / "run/superseded").exists()


def test_a_stopped_training_continues(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = folder / "run/distill/kd"
    shutil.rmtree(student)
    shutil.copytree(folder / "stopped-kd", student)
    before = rows(student / "metrics.jsonl")
    assert run(folder, "--until", "distill") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "distill/kd: continues after epoch 2" in printed
    history = rows(student / "metrics.jsonl")
    assert len(before) == 2 and history[:2] == before and len(history) == 3
    assert read_json(student / "result.json")["values"]["epochs"] == 3
    # Of the 96 images' 3 views the cache had met some in the first two epochs.
    assert "outputs were there" in printed and " 0 of " not in printed


def test_a_bundle_is_read(folder: Path) -> None:
    bundle = folder / "run/export/bundle"
    user_code.trust("tests/compat/tiny.py:tiny")
    student = load_student(bundle)
    shape = student.description["input_shape"]
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(bundle / "student.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert student.network(images).detach().numpy() == pytest.approx(logits, abs=1e-4)
