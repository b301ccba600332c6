"""Data without labels: any tree of images, and labels that only a judge may see."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from compress.data import ImageBatches, open_data
from compress.errors import UserError

DIGITS = {"name": "digits", "image_size": 8, "labels": False}


def draw(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(path)


def tree(root: Path) -> dict[str, object]:
    return {"name": "image_folder", "root": str(root), "image_size": 8, "labels": False}


def test_labels_are_hidden_from_batches_and_kept_for_a_judge() -> None:
    data, seen = open_data(DIGITS), open_data({**DIGITS, "labels": True})
    assert data.class_names == () and not data.train.labels.any() and not data.test.labels.any()
    assert data.train.hidden_labels is not None
    assert torch.equal(data.train.hidden_labels, seen.train.labels)
    assert seen.train.hidden_labels is None
    batches = ImageBatches(
        data.train, data.preprocessing, batch_size=50, augment=["none"], seed=0,
        device=torch.device("cpu"),
    )  # fmt: skip
    assert not next(batches.epoch(0)).labels.any()


def test_subsets_are_drawn_at_random_and_keep_the_labels_of_their_images() -> None:
    spec = {**DIGITS, "train_images": 200, "test_images": 50, "validation": 40}
    data, again, other = open_data(spec), open_data(spec), open_data({**spec, "seed": 1})
    validation = data.validation
    assert validation is not None and validation.hidden_labels is not None
    assert [len(part) for part in (data.train, validation, data.test)] == [160, 40, 50]
    assert data.digest() == again.digest() != other.digest()
    whole = open_data({**DIGITS, "labels": True}).train
    truth = {whole.fetch(torch.tensor([i])).numpy().tobytes(): int(y)
             for i, y in enumerate(whole.labels)}  # fmt: skip
    pixels = validation.fetch(torch.arange(40))
    kept = [truth[p[None].numpy().tobytes()] for p in pixels]
    assert kept == validation.hidden_labels.tolist()
    counts = data.train.hidden_labels.bincount()  # type: ignore[union-attr]
    assert counts.max() > counts.min() + 1, "not the same number of each class"
    share = open_data({**DIGITS, "train_share": 0.1})
    assert len(share.train) == round(0.1 * len(whole))


def test_any_tree_of_images_holds_out_a_share_of_them(tmp_path: Path) -> None:
    draw(tmp_path, *(f"{i % 3}/{i % 2}/{i}.png" for i in range(40)), "top.png", ".x/hidden.png")
    data = open_data(tree(tmp_path))
    assert (len(data.train), len(data.test), data.class_names) == (37, 4, ())
    assert data.train.hidden_labels is None
    assert data.digest() == open_data(tree(tmp_path)).digest()
    wished = {**tree(tmp_path), "test_images": 10, "seed": 5}
    assert [len(open_data(wished).train), len(open_data(wished).test)] == [31, 10]
    assert open_data(wished).test.digest() != open_data({**wished, "seed": 6}).test.digest()
    with pytest.raises(UserError, match="asks for 41 of 41"):
        open_data({**wished, "test_images": 41})


def test_a_folder_of_test_images_is_the_test_split(tmp_path: Path) -> None:
    draw(tmp_path, *(f"a/{i}.png" for i in range(6)), "val/0.png", "val/b/1.png", "c.png")
    data = open_data(tree(tmp_path))
    assert (len(data.train), len(data.test)) == (7, 2)
    draw(tmp_path / "train", "0.png", "1.png", "2.png")
    data = open_data(tree(tmp_path))
    assert (len(data.train), len(data.test)) == (3, 2)


def test_classes_of_a_folder_can_judge(tmp_path: Path) -> None:
    names = [f"{split}/{c}/{i}.png" for split in ("train", "test") for c in "ab" for i in range(3)]
    draw(tmp_path, *names)
    data = open_data(tree(tmp_path))
    assert data.class_names == () and data.test.hidden_labels is not None
    assert data.test.hidden_labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no images"):
        open_data(tree(tmp_path))
    with pytest.raises(UserError, match="not found"):
        open_data(tree(tmp_path / "no"))
