"""Bundles of students that segment: images of any size, gated by pixels, masks as files."""

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from compress.data import Dataset, evaluation_batches, open_data
from compress.errors import UserError
from compress.model_files import Student, artifacts
from compress.models import build
from compress.onnx.files import open_session, run_session
from compress.recipe.schema import Export, Int8
from compress.taps import discover
from compress.tasks import Segmentation
from export.bundle import predict
from export.bundle.int8_gate import Limits, PixelLimits
from export.bundle.manifest import read_manifest
from export.bundle.parity import PixelParity, compare
from export.bundle.request import BundleRequest
from export.bundle.writer import write_bundle
from export.onnx import Enlarged, export_onnx
from export.verify import command
from tests.export.test_snippet import block_of
from tests.export.tracing import traced_exports

SECTION = {"name": "digit_scenes", "digits": 2, "scenes": 24, "test_scenes": 12}
ARCHITECTURE: dict[str, Any] = {
    "name": "pspnet",
    "arguments": {"encoder": "resnet8", "width": 8},
}
CPU = torch.device("cpu")


@lru_cache
def data() -> Dataset:
    return open_data(SECTION)


@lru_cache
def network() -> nn.Module:
    """Trained for seconds, so that its classes are not chance."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = build("pspnet", num_classes=3, **ARCHITECTURE["arguments"]).train()
        ((images, labels),) = evaluation_batches(data().train, 24, data().preprocessing, CPU)
        optimizer = torch.optim.Adam(body.parameters(), 5e-3)
        for _ in range(40):
            optimizer.zero_grad()
            Segmentation().loss(body(images), labels).backward()
            optimizer.step()
    return body.eval()


def request(**export: Any) -> BundleRequest:
    description = artifacts.describe(
        ARCHITECTURE,
        discover(network(), (3, 64, 64), "pspnet", dense=True),
        data().class_names,
        data().preprocessing,
        metrics={},
        fingerprint="0123abcd",
    )
    distillation = {"method": {"name": "skd"}, "weights": {"ce": 1, "kd": 0, "method": 1}}
    description |= {"method": None, "encoder_prefix": "", "distillation": distillation}
    settings = Export.model_validate({"int8": {"calibration_images": 16}, **export})
    return BundleRequest(
        "skd", Student(network(), description), data(), {**SECTION, "seed": 0}, settings
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("segmenters") / "bundle"
    return folder, write_bundle(request(), folder)[0]


@pytest.fixture(scope="module")
def bundle(written: tuple[Path, dict[str, Any]]) -> Path:
    return written[0]


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Three of different sizes, none of them that of the data."""
    draw = np.random.default_rng(0)
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for path, (height, width) in zip(paths, ((50, 71), (64, 40), (33, 90)), strict=True):
        Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return paths


@torch.no_grad()
def expected(path: Path) -> np.ndarray[Any, Any]:
    """The trained network's class of each pixel of a photo."""
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    normalised = data().preprocessing.normalise(pixels)
    return Segmentation().classes(network(), normalised, pixels.shape[-2:])[0].numpy()


def test_the_bundle_says_that_it_segments(written: tuple[Path, dict[str, Any]]) -> None:
    folder, values = written
    manifest = read_manifest(folder)
    assert "encoder.onnx" not in manifest.files and manifest.interfaces is not None
    interface = manifest.interfaces["student.onnx"]
    assert interface.inputs[0].shape == ["batch", 3, "height", "width"]
    (output,) = interface.outputs
    assert (output.name, output.shape) == ("logits", ["batch", 3, "height", "width"])
    assert "every pixel" in output.values and "own size" in str(manifest.preparation)
    card = (folder / "MODEL_CARD.md").read_text()
    assert "image-segmentation" in card and "mean IoU" in card and "top-1" not in card
    assert values["onnx_miou_percent"] == pytest.approx(values["torch_miou_percent"], abs=0.1)
    assert values["int8"]["gate"]["agreement_percent"] > 95
    nodes = [node.op_type for node in onnx.load(folder / "student.onnx").graph.node]
    assert "BatchNormalization" not in nodes
    assert nodes.count("Resize") == 4, "cells of 2, 3 and 6 a side and the logits; one is repeated"


def test_the_mean_iou_is_that_of_the_task(written: tuple[Path, dict[str, Any]]) -> None:
    batches = evaluation_batches(data().test, 5, data().preprocessing, CPU)
    task = Segmentation().evaluate(network(), batches)
    assert written[1]["torch_miou_percent"] == pytest.approx(task["miou_percent"])


@pytest.mark.parametrize("raw", [False, True])
def test_a_file_takes_images_of_any_size(tmp_path: Path, raw: bool) -> None:
    path, preprocessing = tmp_path / "student.onnx", data().preprocessing
    with traced_exports():
        export_onnx(
            network(),
            path,
            input_shape=(3, 64, 64),
            class_names=data().class_names,
            preprocessing=preprocessing.as_dict(),
            fingerprint="",
            raw_pixels=raw,
            dense=True,
        )
    session = open_session(path)
    for height, width in ((64, 64), (40, 97), (121, 66)):
        pixels = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
        images = preprocessing.normalise(pixels)
        given = pixels.permute(0, 2, 3, 1).contiguous().numpy() if raw else images.numpy()
        with torch.inference_mode():
            logits = Enlarged(network())(images)
        assert logits.shape[-2:] == (height, width)
        actual = torch.from_numpy(run_session(session, given))
        torch.testing.assert_close(actual, logits, atol=1e-3, rtol=1e-3)


def test_parity_counts_pixels_with_a_class_alone() -> None:
    """Six pixels, one void: 4 of 5 agree; IoU of the classes from sets of pixels."""
    truth = [0, 0, 1, 1, 255, 0]
    torch_says, file_says = [0, 1, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0]

    def logits(classes: list[int]) -> torch.Tensor:
        return torch.eye(2)[torch.tensor(classes)].T.reshape(1, 2, 2, 3)

    class Session:
        def run(self, *_: Any) -> list[np.ndarray[Any, Any]]:
            return [logits(file_says).numpy()]

    def miou(says: list[int]) -> float:
        shares = []
        for label in (0, 1):
            counted = [i for i in range(6) if truth[i] != 255]
            true = {i for i in counted if truth[i] == label}
            said = {i for i in counted if says[i] == label}
            shares.append(len(true & said) / len(true | said))
        return 100 * sum(shares) / 2

    batch = (logits(torch_says), torch.tensor(truth).reshape(1, 2, 3))
    found = compare(nn.Identity(), Session(), [batch], dense=True)  # type: ignore[arg-type]
    assert isinstance(found, PixelParity) and (found.images, found.pixels) == (1, 5)
    assert found.pixel_agreement_percent == pytest.approx(80)
    assert found.torch_miou_percent == pytest.approx(miou(torch_says))
    assert found.onnx_miou_percent == pytest.approx(miou(file_says))
    assert found.max_abs_difference == 1


def test_the_standard_error_of_mean_iou_is_the_jackknife_over_images() -> None:
    """By hand: mean IoU of every set of images without one, from its pixels."""
    draw = torch.Generator().manual_seed(0)
    truth, trained, said = (torch.randint(0, 3, (5, 4, 4), generator=draw) for _ in range(3))
    truth[0, :2] = 255
    said[1:] = torch.where(said[1:] == 0, trained[1:], said[1:])

    class Session:
        def run(self, *_: object) -> list[Any]:
            return [logits(said).numpy()]

    def logits(classes: Any) -> Any:
        return torch.nn.functional.one_hot(classes, 3).permute(0, 3, 1, 2).float()

    def miou(mask: Any, images: list[int]) -> float:
        shares = []
        for label in range(3):
            true, found = truth[images] == label, (mask[images] == label) & (truth[images] != 255)
            if (true | found).any():
                shares.append(float((true & found).sum() / (true | found).sum()))
        return 100 * sum(shares) / len(shares)

    batches = [(logits(trained), truth)]
    found = compare(nn.Identity(), Session(), batches, dense=True)  # type: ignore[arg-type]
    assert isinstance(found, PixelParity)
    rest = [[i for i in range(5) if i != left] for left in range(5)]
    drops = [miou(trained, images) - miou(said, images) for images in rest]
    mean = sum(drops) / 5
    expected = (4 / 5 * sum((d - mean) ** 2 for d in drops)) ** 0.5
    assert found.drop_standard_error == pytest.approx(expected, rel=1e-4) and expected > 1


def test_each_limit_refuses_alone_and_no_number_passes() -> None:
    def exceeded(drop: float, agreement: float) -> list[str]:
        parity = PixelParity(1, 9.0, 0.1, 1.0, 9, agreement, 60 - drop, 60)
        return Limits(pixels=PixelLimits(2, 90)).list_exceeded(parity)

    assert exceeded(2, 90) == [] and exceeded(-1, 100) == []
    assert [("max_miou_drop" in c) for c in exceeded(2.1, 90)] == [True]
    assert [("min_agreement_percent" in c) for c in exceeded(2, 89)] == [True]
    assert len(exceeded(float("nan"), float("nan"))) == 2


def test_a_recipe_that_names_no_limit_of_pixels_keeps_its_form() -> None:
    assert "max_miou_drop" not in Int8().model_dump()
    assert Int8(max_miou_drop=2).model_dump()["max_miou_drop"] == 2


def test_an_int8_file_below_a_limit_of_the_recipe_is_left_out(tmp_path: Path) -> None:
    strict = {"calibration_images": 8, "min_agreement_percent": 100.0}
    with traced_exports():
        values, _ = write_bundle(request(int8=strict), tmp_path / "bundle")
    assert values["int8"] is None and "of the pixels" in values["int8_refused"]
    assert not (tmp_path / "bundle" / "student.int8.onnx").exists()
    assert (tmp_path / "bundle" / "student.onnx").exists()


def test_verify_compares_at_two_sizes(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(bundle), "--images", "12", "--threads", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    resized = [row for row in report["rows"] if row.get("resized")]
    assert {row["file"] for row in resized} == {"student.onnx", "student.int8.onnx"}
    assert all(row["max_abs_difference"] < 1e-3 for row in resized if row["file"] == "student.onnx")
    options = ["--images", "12", "--threads", "1", "--min-agreement-percent", "100"]
    assert command.main([str(bundle), *options]) == 1
    assert "min_agreement_percent" in capsys.readouterr().out


def test_predict_writes_masks_and_overlays_of_photos_of_any_size(
    bundle: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks, overlays = tmp_path / "masks", tmp_path / "overlays"
    options = ["--masks", str(masks), "--overlays", str(overlays), "--json"]
    assert predict.main([str(bundle), *map(str, photos), *options]) == 0
    records = json.loads(capsys.readouterr().out)
    for path, record in zip(photos, records, strict=True):
        with Image.open(record["mask"]) as mask, Image.open(record["overlay"]) as overlay:
            assert mask.mode == "P" and mask.size == overlay.size
            classes = np.array(mask)
        truth = expected(path)
        assert classes.shape == truth.shape and (classes == truth).mean() > 0.999
        shares = {row["index"]: row["share"] for row in record["shares"]}
        assert sum(shares.values()) == pytest.approx(1)
        assert all(v == pytest.approx((classes == k).mean()) for k, v in shares.items())
    assert predict.main([str(bundle), str(photos[0])]) == 0
    assert " %" in capsys.readouterr().out


def test_predict_writes_over_no_photo_and_keeps_two_of_a_name_apart(
    bundle: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other" / "a.png"
    other.parent.mkdir()
    shutil.copy(photos[1], other)
    before = photos[0].read_bytes()
    inputs = [str(bundle), str(photos[0]), str(other)]
    assert predict.main([*inputs, "--masks", str(tmp_path)]) == 1
    assert "is one of the images" in capsys.readouterr().err
    assert photos[0].read_bytes() == before
    assert predict.main([*inputs, "--masks", str(tmp_path / "masks")]) == 0
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == ["a-2.png", "a.png"]


def test_the_program_of_the_card_prints_the_shares_of_predict(
    bundle: Path,
    photos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert predict.main([str(bundle), str(photos[2]), "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    for name in ("student.onnx", "labels.txt"):
        shutil.copy(bundle / name, tmp_path)
    shutil.copy(photos[2], tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(block_of((bundle / "MODEL_CARD.md").read_text()), "card", "exec"), {})
    lines = [line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines()]
    shares = {row["class"]: row["share"] for row in record["shares"]}
    assert {name: float(share) for name, share in lines} == pytest.approx(shares)


def test_a_file_of_one_size_is_refused(tmp_path: Path) -> None:
    """One whose pooling was fixed to the example's size is right there and wrong elsewhere."""
    from export.bundle.request import require_other_size

    class Fixed(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            pooled: torch.Tensor = nn.functional.avg_pool2d(images, 32)
            return pooled

    path = tmp_path / "student.onnx"
    with traced_exports():
        export_onnx(
            Fixed(),
            path,
            input_shape=(3, 64, 64),
            class_names=data().class_names,
            preprocessing=data().preprocessing.as_dict(),
            fingerprint="",
            dense=True,
        )
    with pytest.raises(UserError, match="differs from the trained network"):
        require_other_size(request(), path)
