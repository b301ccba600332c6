"""Bundles of students that give embeddings: gated, verified and used by cosine."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from compress.data import open_data
from compress.errors import UserError
from compress.model_files import Student, artifacts
from compress.models import build
from compress.recipe.schema import Export
from compress.taps import discover
from export.bundle import predict
from export.bundle.int8_gate import CosineLimits, Limits
from export.bundle.manifest import read_manifest
from export.bundle.parity import EmbeddingParity, compare
from export.bundle.request import BundleRequest
from export.bundle.writer import write_bundle
from export.verify import command
from tests.export.networks import trained
from tests.export.test_snippet import block_of
from tests.export.tracing import traced_exports

SECTION = {"name": "digits", "labels": False, "test_images": 40, "train_images": 60}


def request(**int8: Any) -> BundleRequest:
    data = open_data(SECTION)
    network = trained(build("resnet8", num_classes=0), size=16)
    description = artifacts.describe(
        {"name": "resnet8", "arguments": {}},
        discover(network, (3, 16, 16), "resnet8", embeds=True),
        data.class_names,
        data.preprocessing,
        metrics={},
        fingerprint="0123abcd",
    )
    distillation = {"method": {"name": "rkd"}, "weights": {"ce": 0, "kd": 0, "method": 1}}
    description |= {"method": None, "encoder_prefix": "", "distillation": distillation}
    settings = Export.model_validate({"int8": {"calibration_images": 32, **int8}})
    student = Student(network.eval(), description)
    return BundleRequest("rkd", student, data, {**SECTION, "seed": 0}, settings)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings") / "bundle"
    with traced_exports():
        write_bundle(request(), folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    images = open_data(SECTION).test.fetch(torch.arange(3)).permute(0, 2, 3, 1).numpy()
    names = [str(tmp_path / f"{number}.png") for number in range(3)]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(name)
    return names


def test_the_bundle_names_no_classes_and_says_that_it_embeds(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert "labels.txt" not in manifest.files and manifest.interfaces is not None
    (output,) = manifest.interfaces["student.onnx"].outputs
    assert (output.name, output.shape, output.layout) == ("embedding", ["batch", 64], "ND")
    card = (bundle / "MODEL_CARD.md").read_text()
    assert "image-feature-extraction" in card and "embeddings of 64 numbers" in card
    assert "top-1" not in card and "mean cosine" in card


def test_parity_is_the_cosine_of_each_image_counted_with_loops() -> None:
    draw = torch.Generator().manual_seed(0)
    expected, actual = (torch.randn(50, 5, generator=draw) for _ in range(2))

    class Session:
        def run(self, *_: Any) -> list[np.ndarray]:
            return [actual.numpy()]

        def get_inputs(self) -> list[Any]:
            return [type("Input", (), {"name": "images"})]

    network = nn.Identity()
    found = compare(network, Session(), [(expected, torch.zeros(50))], embeds=True)  # type: ignore[arg-type]
    cosines = []
    for one, other in zip(expected.double().tolist(), actual.double().tolist(), strict=True):
        product = math.fsum(a * b for a, b in zip(one, other, strict=True))
        lengths = [math.sqrt(math.fsum(a * a for a in v)) for v in (one, other)]
        cosines.append(product / (lengths[0] * lengths[1]))
    cosines.sort()
    assert isinstance(found, EmbeddingParity)
    assert found.mean_cosine == pytest.approx(math.fsum(cosines) / 50)
    place = 0.01 * 49  # between the lowest and the next, linearly
    assert found.low_cosine == pytest.approx(cosines[0] + place * (cosines[1] - cosines[0]))


def test_each_limit_refuses_alone_and_no_number_passes() -> None:
    def exceeded(mean: float, low: float) -> list[str]:
        return Limits(cosines=CosineLimits(0.9, 0.8)).list_exceeded(
            EmbeddingParity(100, 0.1, 0.1, 1.0, mean, low)
        )

    assert exceeded(0.9, 0.8) == []
    assert len(exceeded(0.89, 0.8)) == 1 and "min_mean_cosine" in exceeded(0.89, 0.8)[0]
    assert len(exceeded(0.9, 0.79)) == 1 and "min_low_cosine" in exceeded(0.9, 0.79)[0]
    assert len(exceeded(math.nan, math.nan)) == 2


def test_an_int8_file_below_a_limit_of_the_recipe_is_left_out(tmp_path: Path) -> None:
    with traced_exports():
        values, _ = write_bundle(request(min_mean_cosine=1.0), tmp_path / "bundle")
    assert values["int8"] is None and "min_mean_cosine" in values["int8_refused"]
    assert not (tmp_path / "bundle" / "student.int8.onnx").exists()
    assert values["mean_cosine"] == pytest.approx(1)


def test_verify_judges_by_cosine(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(bundle), "--images", "40", "--threads", "1"]) == 0
    assert "mean cos" in capsys.readouterr().out
    options = ["--images", "40", "--threads", "1", "--min-low-cosine", "1"]
    assert command.main([str(bundle), *options]) == 1
    assert "min_low_cosine" in capsys.readouterr().out


def test_predict_writes_the_embeddings_of_the_trained_network(
    bundle: Path, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, table = tmp_path / "e.npz", tmp_path / "e.csv"
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    for path in (target, table):
        options = [*pictures, str(broken), "--embed", str(path)]
        assert predict.main([str(bundle), *options]) == 1, "one of the files is broken"
    with np.load(target) as saved:
        files, embeddings = saved["files"].tolist(), saved["embeddings"]
    data = open_data(SECTION)
    inputs = data.preprocessing.normalise(data.test.fetch(torch.arange(3)))
    with torch.no_grad():
        expected = artifacts.load_student(bundle).network(inputs).numpy()
    assert files == pictures
    np.testing.assert_allclose(embeddings, expected, atol=1e-4)
    rows = [*csv.reader(table.read_text(encoding="utf-8").splitlines())]
    assert [row[0] for row in rows] == ["file", *pictures]
    assert np.array_equal(np.array(rows[1:])[:, 1:].astype(np.float32), embeddings)
    capsys.readouterr()
    assert predict.main([str(bundle), *pictures, "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [len(record["embedding"]) for record in records] == [64] * 3


def test_predict_refuses_what_its_bundle_does_not_give(
    bundle: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict.main([str(bundle), *pictures]) == 2
    assert "--embed FILE.npz" in capsys.readouterr().err
    assert predict.main([str(bundle), *pictures, "--csv", "e.csv"]) == 2
    assert "--embed FILE.csv" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        predict.main([str(bundle), *pictures, "--embed", "e.txt"])
    assert "no .npz or .csv" in capsys.readouterr().err


def test_the_program_of_the_card_prints_the_embedding(
    bundle: Path,
    pictures: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = block_of((bundle / "MODEL_CARD.md").read_text())
    shutil.copy(bundle / "student.onnx", tmp_path)
    shutil.copy(pictures[0], tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "card", "exec"), {})
    numbers = np.array(capsys.readouterr().out.strip("[] \n").split(), dtype=float)
    assert numbers.shape == (64,) and np.linalg.norm(numbers) == pytest.approx(1, abs=1e-3)


def test_descriptions_of_embeddings_and_classes_are_not_mixed(tmp_path: Path) -> None:
    student = request().student
    for wrong in ({"embedding_width": None}, {"num_classes": 1, "class_names": ["a"]}):
        artifacts.save(tmp_path, "student", student.network, {**student.description, **wrong})
        with pytest.raises(UserError, match="embedding_width"):
            artifacts.load_student(tmp_path)
