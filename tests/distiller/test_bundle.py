"""Bundles of networks of one's own, made and checked with loaders of one's own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from compress.distiller import Distiller
from compress.errors import UserError
from compress.model_files import load_student
from compress.models import build, user_code
from export import verify_bundle
from tests.distiller.making import CLASSES, SHAPE, Small, distiller, loader
from tests.export.tracing import traced_exports

FILES = {
    "MODEL_CARD.md", "encoder.onnx", "labels.txt", "manifest.json", "predict.py", "preprocess.json",
    "student.json", "student.onnx", "student.safetensors",
}  # fmt: skip
CODE = """
from tests.distiller.making import Small

def small(num_classes, width):
    return Small(num_classes, width)
"""


def fitted(folder: Path, method: str = "simkd", **options: Any) -> Distiller:
    own = distiller(method, **options)
    own.fit(loader(batch_size=6, shuffle=True), epochs=1, directory=folder, lr=0.01)
    return own


def export(own: Distiller, folder: Path, **settings: Any) -> dict[str, Any]:
    with traced_exports():
        return own.export_bundle(folder, test_loader=loader(15), **settings)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Distiller, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("bundle")
    names = ["ant", "bee", "cat", "dog", "emu"]
    loose = {"max_top1_drop": 100, "min_agreement_percent": 0, "max_difference": 100}
    own = fitted(folder / "run", student=build("resnet8", num_classes=CLASSES), classes=names,
                 architecture="resnet8")  # fmt: skip
    values = export(own, folder / "deep/bundle", int8=loose, about="noise of five colours")
    return own, folder / "deep/bundle", values


def test_the_bundle_is_whole_and_computes_the_network_that_ships(
    made: tuple[Distiller, Path, dict[str, Any]],
) -> None:
    own, bundle, values = made
    assert {path.name for path in bundle.iterdir()} == FILES | {"student.int8.onnx"}
    assert values["images"] == 15 and values["int8"]["calibration_images"] == 24
    assert values["torch_top1_percent"] == pytest.approx(own.evaluate(loader(15))["top1_percent"])
    images = next(iter(loader(15)))[0]
    session = onnxruntime.InferenceSession(bundle / "student.onnx")
    (logits,) = session.run(None, {"images": images.numpy()})
    np.testing.assert_allclose(logits, own.deploy()(images).detach(), atol=1e-4)
    assert (bundle / "labels.txt").read_text().split() == ["ant", "bee", "cat", "dog", "emu"]
    card = (bundle / "MODEL_CARD.md").read_text()
    assert "* Data: noise of five colours, from the DataLoader of a program" in card
    teacher = own.evaluate(loader(15), own.teachers[0])["top1_percent"]
    assert f"* Teacher: Small, {teacher:.2f} % top-1" in card and "* Method: simkd" in card
    student = load_student(bundle)  # encoder, projector and the teacher's classifier
    torch.testing.assert_close(student.network(images), own.deploy()(images))


def test_a_bundle_is_verified_on_the_images_of_a_loader(
    made: tuple[Distiller, Path, dict[str, Any]],
) -> None:
    own, bundle, _ = made
    report = own.verify(bundle, test_loader=loader(15))
    assert not report["failures"] and report["rows"] and report["encoder"]
    without = verify_bundle(bundle)
    assert not without["failures"] and not without["rows"]
    assert "came from a program's DataLoader" in without["not_compared"]
    with pytest.raises(UserError, match="leave out --data"):
        verify_bundle(bundle, data=bundle)


def test_a_bundle_that_was_changed_is_not_in_order(
    made: tuple[Distiller, Path, dict[str, Any]],
) -> None:
    own, bundle, _ = made
    labels = bundle / "labels.txt"
    before = labels.read_text()
    try:
        labels.write_text(before.replace("bee", "cow"))
        with pytest.raises(UserError, match=r"labels\.txt was changed"):
            own.verify(bundle, test_loader=loader(15))
    finally:
        labels.write_text(before)


def test_a_student_that_nothing_rebuilds_still_ships(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = fitted(tmp_path / "run", "kd")
    values = export(own, tmp_path / "bundle", int8=None)
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == FILES
    assert values["top1_agreement_percent"] == 100 and values["int8"] is None
    assert "give `architecture`" in capsys.readouterr().out
    described = json.loads((tmp_path / "bundle/student.json").read_text())
    assert described["architecture"]["name"] == "tests.distiller.making:Small"
    with pytest.raises(UserError, match="--trust-code"):
        load_student(tmp_path / "bundle")
    with pytest.raises(UserError, match="needs `architecture`"):
        own.verify(tmp_path / "bundle", test_loader=loader(15))


def test_code_of_ones_own_that_is_named_rebuilds_the_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_code, "_trusted", set())
    code = tmp_path / "networks.py"
    code.write_text(CODE)
    architecture = {"name": f"{code}:small", "width": 8}
    own = fitted(tmp_path / "run", "kd", architecture=architecture)
    export(own, tmp_path / "bundle", int8=None)
    images = torch.randn(2, *SHAPE)
    again = load_student(tmp_path / "bundle").network
    torch.testing.assert_close(again(images), own.deploy()(images))
    with pytest.raises(UserError, match="builds another network than the student: "):
        distiller(architecture={**architecture, "width": 9})


def test_a_loop_of_ones_own_is_exported_too(tmp_path: Path) -> None:
    own = distiller("at")
    own.prepare(loader(), epochs=1)
    own.losses(*next(iter(loader()))).total.backward()  # type: ignore[no-untyped-call]
    own.after_step()
    values = export(own, tmp_path / "bundle", int8=None, raw_pixels=True)
    assert values["raw_pixels"] and values["top1_agreement_percent"] == 100


def test_nothing_is_overwritten_and_settings_are_those_of_a_recipe(tmp_path: Path) -> None:
    own = distiller("kd", student=Small())
    own.prepare(loader(), epochs=1)
    kept = tmp_path / "bundle"
    kept.mkdir()
    with pytest.raises(UserError, match="is there already"):
        export(own, kept)
    with pytest.raises(UserError, match=r"int_8.*did you mean 'int8'"):
        export(own, tmp_path / "other", int_8=None)
    with pytest.raises(UserError, match="call fit, or prepare"):
        export(distiller("kd"), tmp_path / "other")
    assert [*tmp_path.iterdir()] == [kept] and not [*kept.iterdir()]


class _Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = Small()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(images) + float(images.mean().detach())
        return logits


def test_a_file_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    own = distiller("kd", student=_Untraceable())
    own.prepare(loader(), epochs=1)
    with pytest.raises(UserError, match=r"differs from the trained network|ONNX"):
        export(own, tmp_path / "bundle", int8=None)
    assert not [*tmp_path.iterdir()]
