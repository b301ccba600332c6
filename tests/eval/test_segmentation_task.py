"""The segmentation task as a whole: what it reports, draws and refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compress import models
from compress.data.dense.overlays import draw_overlays, palette
from compress.engine import TrainSettings
from compress.errors import UserError
from compress.run.directory import RunDirectory
from eval.segmentation import segmentation
from eval.transfer.context import TransferContext

Write = Callable[..., Path]


def context(root: Path, name: str, **changes: Any) -> TransferContext:
    """One training step of a plain network whose weights lie in a file."""
    weights = root / "plain.pth"
    torch.save(models.build(name, num_classes=5, seed=3).state_dict(), weights)
    given: dict[str, Any] = {
        "run": RunDirectory(root, "run"),
        "stage": "transfer",
        "students": {"plain": f"{name}@{weights}"},
        "main": "plain",
        "inits": ("distilled", "scratch"),
        "data": {
            "name": "voc_segmentation",
            "root": str(root),
            "classes": ["background", "0", "1", "2"],
        },
        "settings": TrainSettings(epochs=1, lr=0.01, batch_size=2),
        "device": torch.device("cpu"),
    }
    return TransferContext(**{**given, **changes})


def test_result_has_the_majority_and_a_picture_per_init(scenes: Write) -> None:
    root = scenes(train=2, test=2)
    values = segmentation(context(root, "resnet8", seeds=(0, 1)))
    assert values["majority"]["class"] == "background"
    assert values["majority"]["pixel_percent"] > 50
    assert f"{values['majority']['miou_percent']:.1f} %" in values["legend"]
    assert values["pictures"] == ["distilled/seed-0/masks.png", "scratch/seed-0/masks.png"]
    for picture in values["pictures"]:
        with Image.open(root / "transfer" / picture) as image:
            assert image.width == 2 * 320 + 6  # two test images side by side


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_encoder_has_no_auxiliary_loss(scenes: Write, frozen: bool) -> None:
    root = scenes(train=2, test=2)
    segmentation(context(root, "resnet8", inits=("distilled",)), freeze_encoder=frozen)
    row = (root / "transfer" / "distilled" / "seed-0" / "metrics.jsonl").read_text()
    assert ("auxiliary" in row) is not frozen


def test_deep_stem_says_how_much_matches_and_must_be_allowed(scenes: Write) -> None:
    root, name = scenes(train=2, test=2), "torchvision:resnet18"
    with pytest.raises(UserError, match=r"with a deep stem only 81\.9 % of the encoder"):
        segmentation(context(root, name), image_size=32, deep_stem=True)
    allowed = context(root, name, allow_partial=True)
    rows = segmentation(allowed, image_size=32, deep_stem=True)["rows"]
    # 7 of the 120 tensors are new, and 18 that a plain ResNet-18 has not.
    assert rows[0]["matched_percent"] == pytest.approx(100 * 113 / 138)
    assert rows[1]["matched_percent"] == 0


def test_deep_stem_of_a_frozen_encoder_is_refused(scenes: Write) -> None:
    with pytest.raises(UserError, match="must learn"):
        segmentation(context(scenes(), "resnet8"), deep_stem=True, freeze_encoder=True)


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("image_size", 0, 1), ("crop", -3, 1), ("width", 0, 1), ("auxiliary_weight", -0.5, 0)],
)
def test_arguments_that_are_too_small_are_refused_before_the_data(
    tmp_path: Path, name: str, value: float, least: int
) -> None:
    given: dict[str, Any] = {name: value}
    with pytest.raises(UserError, match=rf"^segmentation: {name} is at least {least}, got {value}"):
        segmentation(context(tmp_path, "resnet8"), **given)  # whose folder has no data


def test_batches_of_one_image_are_refused(scenes: Write) -> None:
    settings = TrainSettings(epochs=1, lr=0.01, batch_size=1)
    with pytest.raises(UserError, match="batches of two or more"):
        segmentation(context(scenes(), "resnet8", settings=settings))


@pytest.mark.parametrize("background", [True, False])
def test_void_and_background_stay_uncoloured(tmp_path: Path, background: bool) -> None:
    pixels = torch.full((3, 4, 320), 90, dtype=torch.uint8)
    mask = torch.zeros(4, 320, dtype=torch.int64)
    mask[:, 100:200] = 1
    mask[:, 200:] = 255
    path = tmp_path / "new" / "picture.png"
    names = ("ground", "tree")
    draw_overlays(path, [pixels], [mask], [mask], names, background=background)
    drawn = np.asarray(Image.open(path))
    mixed = (0.4 * 90 + 0.6 * palette(2).double()).round().numpy()
    # A title of 18 pixels and a strip of 4 for the image, the true and the predicted mask, 6 apart.
    image, truth, prediction = (drawn[row * (18 + 6 + 4 + 6) + 18 + 6 + 2] for row in range(3))
    assert (image == 90).all()
    assert (truth[250] == 90).all()
    assert (truth[150] == mixed[1]).all()
    assert (truth[50] == (90 if background else mixed[0])).all()
    assert (truth == prediction).all()


def test_colours_of_nineteen_classes_differ() -> None:
    colours = palette(19).double()
    distances = torch.cdist(colours, colours) + 1e3 * torch.eye(19)
    assert distances.min() > 30
