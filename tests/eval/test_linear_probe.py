"""Linear probe: a frozen trunk, cached features, both solvers, data layouts and what is wrong."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from compress.data import MemoryImages
from compress.engine import TrainSettings
from compress.errors import UserError
from compress.model_files import Encoder, open_origin, origins_of
from compress.run.directory import RunDirectory
from eval.data.labelled import DATASETS, Opener
from eval.linear_probe import Features, linear_probe, pooled_features, task
from eval.linear_probe import features as features_module
from eval.linear_probe.features import features_of, open_pictures
from eval.transfer.context import Start, TransferContext
from tests.eval.runs import SHOWN, write_run


def context(tmp_path: Path, data: dict[str, Any]) -> TransferContext:
    run = write_run(tmp_path / "run")
    return TransferContext(
        run=RunDirectory(tmp_path, "run"),
        stage="probe",
        students=origins_of(run),
        main="kd",
        inits=("distilled", "alone", "scratch"),
        data=data,
        settings=TrainSettings(epochs=2, lr=0.05, batch_size=4),
        device=torch.device("cpu"),
        seeds=(0, 1),
    )


def test_trunk_is_bit_equal_before_and_after(
    tmp_path: Path, scenes: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters, batch-norm statistics and maps; the encoder as the probe left it."""
    kept: list[tuple[Start, Tensor]] = []
    images = torch.randn(3, 3, 16, 16)

    def remember(given: TransferContext, start: Start, data: Any) -> Features:
        with torch.no_grad():
            kept.append((start, start.encoder.eval()(images)))
        start.encoder.train()  # as a careless caller might leave it
        return features_of(given, start, data)

    monkeypatch.setattr(task, "features_of", remember)
    linear_probe(context(tmp_path, {"name": "image_folder", "root": str(scenes() / "crops")}))
    assert len(kept) == 6
    for start, before in kept:
        fresh = start.origin.encoder(weights=start.init != "scratch", seed=start.seed)
        for name, tensor in fresh.state_dict().items():
            assert torch.equal(start.encoder.state_dict()[name], tensor), name
        with torch.no_grad():
            assert torch.equal(start.encoder.eval()(images), before)


def test_features_are_computed_once(
    tmp_path: Path, scenes: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a student once for all seeds; again only for another encoder or other pictures."""
    computed: list[int] = []

    def counted(encoder: Encoder, images: Any, device: torch.device) -> Tensor:
        computed.append(len(images))
        return pooled_features(encoder, images, device)

    monkeypatch.setattr(features_module, "pooled_features", counted)
    root = scenes()
    entry = context(tmp_path, {"name": "image_folder", "root": str(root / "crops")})
    first = linear_probe(entry)
    assert len(computed) == 2 * (2 + 2)  # two students once, scratch with each of two seeds
    computed.clear()

    for outcome in entry.folder.glob("*/*/outcome.json"):
        outcome.unlink()
    again = linear_probe(replace(entry, settings=TrainSettings(epochs=2, lr=0.05, batch_size=4)))
    assert again == first and not computed

    start = Start("distilled", "kd", open_origin(str(entry.students["none"])).encoder(),
                  entry.folder / "x", open_origin(str(entry.students["kd"])), 0)  # fmt: skip
    data = open_pictures(entry)(SHOWN)
    features_of(entry, start, data)
    assert len(computed) == 2  # the file of `kd` is of other weights
    features_of(entry, start, replace(data, train=data.train.subset(torch.arange(5))))
    assert len(computed) == 4


def test_pooled_features_are_the_means_of_the_map(encoder: Encoder) -> None:
    pixels = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    images = MemoryImages(pixels, torch.arange(5))
    features = pooled_features(encoder, images, torch.device("cpu"))
    maps = encoder.eval()((pixels.float() / 255 - 0.3) / 0.3).detach()
    expected = torch.tensor(
        [[float(maps[n, c].double().mean()) for c in range(8)] for n in range(5)]
    )
    torch.testing.assert_close(features, expected)


def test_lbfgs_finds_the_minimum_of_the_decayed_loss() -> None:
    """No nearby weights have a lower mean cross-entropy plus decay / 2 of their square."""
    drawn = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    points = torch.randn(60, 4, generator=drawn) + 1.5 * torch.eye(4)[labels]
    features = Features(points, labels, points, labels, 3)
    probabilities = torch.from_numpy(task._by_lbfgs(features, weight_decay=0.01))

    head = torch.nn.Linear(4, 3).double()
    optimiser = torch.optim.SGD(head.parameters(), lr=0.5)
    for _ in range(3000):
        loss = torch.nn.functional.cross_entropy(head(points.double()), labels)
        optimiser.zero_grad()
        (loss + 0.005 * head.weight.square().sum()).backward()
        optimiser.step()
    torch.testing.assert_close(
        probabilities, head(points.double()).softmax(1).detach(), rtol=0, atol=1e-3
    )


def test_lbfgs_beats_guessing_and_needs_no_epochs(
    tmp_path: Path, scenes: Callable[..., Path]
) -> None:
    entry = context(tmp_path, {"name": "image_folder", "root": str(scenes() / "crops")})
    outcome = linear_probe(entry, solver="lbfgs")
    row = outcome["rows"][0]
    assert row["metrics"]["top1_percent"] > 50  # three classes
    assert row["spread"] == {"top1_percent": 0.0}
    assert not (entry.folder / "distilled" / "seed-0" / "metrics.jsonl").exists()
    assert "L-BFGS" in outcome["protocol"]


def test_standardised_features() -> None:
    drawn = torch.Generator().manual_seed(0)
    train, test = torch.randn(50, 3, generator=drawn) * 7 + 2, torch.ones(4, 3)
    labels = torch.zeros(50)
    features = Features(train, labels, test, labels, 1).standardise()
    torch.testing.assert_close(features.train.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(features.train.std(0), torch.ones(3))
    torch.testing.assert_close(features.test, (test - train.mean(0)) / train.std(0))


def write_stl(folder: Path, count: int = 4) -> Path:
    """Row r of channel 0 is r, column c of channel 1 is c; channel 2 is the image's number."""
    folder.mkdir(parents=True)
    rows, columns = np.meshgrid(np.arange(96), np.arange(96), indexing="ij")
    for split in ("train", "test"):
        images = np.stack([np.stack([rows, columns, np.full((96, 96), n)]) for n in range(count)])
        images.transpose(0, 1, 3, 2).astype(np.uint8).tofile(folder / f"{split}_X.bin")
        (np.arange(count) % 2 + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("airplane\nbird\n")
    return folder


@pytest.mark.parametrize("inside", ["", "stl10_binary"])
def test_stl10(tmp_path: Path, inside: str) -> None:
    write_stl(tmp_path / "stl" / inside)
    opener = DATASETS["stl10"](tmp_path, root=str(tmp_path / "stl"))
    data = opener(replace(SHOWN, image_size=96), 0)
    assert data.class_names == ("airplane", "bird")
    assert data.train.labels.tolist() == [0, 1, 0, 1]
    image = data.test.fetch(torch.tensor([2]))[0]
    assert torch.equal(image[0, :, 0], torch.arange(96, dtype=torch.uint8))  # rows run down
    assert torch.equal(image[1, 0, :], torch.arange(96, dtype=torch.uint8))
    assert (image[2] == 2).all()
    assert opener(SHOWN, 0).train.fetch(torch.tensor([0])).shape == (1, 3, 16, 16)


def write_tiny(folder: Path) -> Path:
    """Two classes of two training images; a test image of each, listed in the other order."""
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for value, name in enumerate(("n01", "n02")):
        images = folder / "train" / name / "images"
        images.mkdir(parents=True)
        for number in range(2):
            picture = Image.new("RGB", (64, 64), (100 * value + 20, 0, 0))
            picture.save(images / f"{name}_{number}.JPEG")
        picture.save(folder / "val" / "images" / f"val_{1 - value}.JPEG")
        lines.append(f"val_{1 - value}.JPEG\t{name}\t0\t0\t62\t62")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_tiny_imagenet(tmp_path: Path) -> None:
    root = write_tiny(tmp_path / "tiny")
    data = DATASETS["tiny_imagenet"](tmp_path, root=str(root))(SHOWN, 0)
    assert data.class_names == ("n01", "n02")
    for images in (data.train, data.test):
        for index, label in enumerate(images.labels.tolist()):
            pixels = images.fetch(torch.tensor([index]))
            assert pixels.shape == (1, 3, 16, 16)
            assert abs(int(pixels[0, 0].float().mean()) - (100 * label + 20)) < 4
    first = DATASETS["tiny_imagenet"](tmp_path, root=str(root), classes=1)(SHOWN, 0)
    assert (len(first.train), len(first.test)) == (2, 1)


def _listing(root: Path) -> Path:
    return root / "val" / "val_annotations.txt"


def _piped(root: Path) -> None:
    _listing(root).unlink()
    os.mkfifo(_listing(root))


@pytest.mark.parametrize(
    ("name", "harm", "message"),
    [
        ("stl10", lambda r: (r / "test_y.bin").unlink(), r"test_y\.bin not found"),
        ("stl10", lambda r: (r / "test_y.bin").write_bytes(b"\1"), r"test_y\.bin holds 1 labels"),
        ("stl10", lambda r: (r / "train_y.bin").write_bytes(b"\0\1\1\1"), r"train_y\.bin.* is 0"),
        ("stl10", lambda r: (r / "train_X.bin").write_bytes(b"ab"), r"train_X\.bin is damaged"),
        ("stl10", lambda r: (r / "train_X.bin").write_bytes(b""), r"train_X\.bin is damaged"),
        ("stl10", lambda r: (r / "class_names.txt").write_text("one"), "class_names.txt names 1"),
        ("tiny_imagenet", lambda r: _listing(r).unlink(), "val_annotations.txt not found"),
        ("tiny_imagenet", lambda r: _listing(r).write_text("a\tn09\n"), "line 1: no class"),
        ("tiny_imagenet", lambda r: _listing(r).write_text("a\tn01\n"), "images/a not found"),
        ("tiny_imagenet", lambda r: _listing(r).write_text(""), "val holds no images"),
        ("tiny_imagenet", lambda r: _listing(r).write_bytes(b"\xff"), "txt is no UTF-8"),
        ("tiny_imagenet", lambda r: _listing(r).write_text("../../../s\tn01\n"), "is outside"),
        ("tiny_imagenet", lambda r: _listing(r).write_text("/etc/hostname\tn01\n"), "is outside"),
        ("stl10", lambda r: (r / "class_names.txt").write_bytes(b"\xff"), "names.txt is no UTF-8"),
        ("tiny_imagenet", _piped, "annotations.txt is a named pipe"),
    ],
)  # fmt: skip
def test_malformed_data_name_the_file(
    tmp_path: Path, name: str, harm: Callable[[Path], Any], message: str
) -> None:
    root = (write_stl if name == "stl10" else write_tiny)(tmp_path / "data")
    harm(root)
    with pytest.raises(UserError, match=message) as caught:
        opener: Opener = DATASETS[name](tmp_path, root=str(root))
        opener(SHOWN, 0)
    assert "\n" not in str(caught.value)


def test_damaged_picture_is_named(tmp_path: Path) -> None:
    root = write_tiny(tmp_path / "tiny")
    (root / "train" / "n01" / "images" / "n01_1.JPEG").write_bytes(b"no picture")
    data = DATASETS["tiny_imagenet"](tmp_path, root=str(root))(SHOWN, 0)
    with pytest.raises(UserError, match=r"n01_1\.JPEG is not a readable image"):
        data.train.fetch(torch.arange(4))
