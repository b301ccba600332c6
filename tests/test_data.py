"""Data: order and augmentation are pure functions, subsets are balanced, files are read safely."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compress.data import DATASETS, ImageBatches, MemoryImages, Preprocessing, open_data
from compress.data.augment import AUGMENTATIONS, PAD, shift_and_flip
from compress.data.digits import held_out_scenes_digits
from compress.errors import UserError

CPU = torch.device("cpu")
PLAIN = Preprocessing(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def some_images(count: int = 10, size: int = 8) -> MemoryImages:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return MemoryImages(pixels, torch.arange(count) % 3)


def batches(batch_size: int = 4, seed: int = 0, views: int = 1) -> ImageBatches:
    return ImageBatches(
        some_images(), PLAIN, batch_size=batch_size, augment=["crop_flip"] * views, seed=seed,
        device=CPU,
    )  # fmt: skip


def test_every_id_is_its_own_crop_and_flip() -> None:
    image = some_images(1).pixels[0]
    padded = np.pad(image.numpy(), ((0, 0), (PAD, PAD), (PAD, PAD)))
    for view in range(162):
        flip, offset = divmod(view, 81)
        row, column = divmod(offset, 9)
        expected = padded[:, row : row + 8, column : column + 8]
        if flip:
            expected = expected[:, :, ::-1]
        got = shift_and_flip(image[None], torch.tensor([view]))[0]
        assert np.array_equal(got.numpy(), expected), view


def test_view_ids_are_uniform() -> None:
    ids = AUGMENTATIONS["crop_flip"].draw(81_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(ids, minlength=162)
    # 500 expected each, standard deviation 22.3; five of them never happen by chance.
    assert len(counts) == 162
    assert (counts - 500).abs().max() < 112


def test_an_epoch_is_a_pure_function_of_seed_epoch_and_index() -> None:
    first, second = batches(), batches(batch_size=3)
    list(second.epoch(0))  # what ran before changes nothing
    one = {int(i): x for b in first.epoch(4) for i, x in zip(b.index, b.images[0], strict=True)}
    other = {int(i): x for b in second.epoch(4) for i, x in zip(b.index, b.images[0], strict=True)}
    # The tenth image is alone in a batch of three's last, which is left out.
    assert len(one) == 10
    assert all(torch.equal(one[i], x) for i, x in other.items())


def test_epochs_seeds_and_views_differ() -> None:
    def first(epoch: int, seed: int) -> Any:
        return next(batches(seed=seed, views=2).epoch(epoch))

    assert not torch.equal(first(0, 0).index, first(1, 0).index)
    assert not torch.equal(first(0, 0).index, first(0, 1).index)
    batch = first(0, 0)
    assert not torch.equal(batch.view_ids[0], batch.view_ids[1])


def test_a_stored_view_can_be_recomputed_from_index_and_id() -> None:
    for batch in batches().epoch(2):
        again = shift_and_flip(some_images().pixels[batch.index], batch.view_ids[0])
        assert torch.equal(PLAIN.normalise(again), batch.images[0])


def test_every_image_once_per_epoch_and_no_batch_of_one() -> None:
    seen = torch.cat([b.index for b in batches(batch_size=5).epoch(0)])
    assert sorted(seen.tolist()) == list(range(10))
    assert len(batches(batch_size=3)) == 3
    assert [len(b.labels) for b in batches(batch_size=3).epoch(0)] == [3, 3, 3]


def test_normalisation_by_hand() -> None:
    preprocessing = Preprocessing(1, (0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    pixel = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    assert preprocessing.normalise(pixel).flatten().tolist() == pytest.approx([1.0, -1.0, 0.1])


def test_digits_are_split_without_overlap_and_balanced() -> None:
    data = open_data({"name": "digits"})
    assert len(data.train), len(data.test) == (1197, 300)
    assert torch.bincount(data.test.labels).tolist() == [30] * 10
    pixels, labels = held_out_scenes_digits()
    assert torch.bincount(labels).tolist() == [30] * 10
    shown = {bytes(p.numpy()) for p in pixels}
    assert len(shown) == 300
    original = open_data({"name": "digits", "image_size": 8})
    for split in (original.train, original.test):
        digits = split.fetch(torch.arange(len(split)))[:, 0]
        assert not shown & {bytes(d.numpy().tobytes()) for d in digits}


def test_subsets_are_balanced_and_seeded() -> None:
    spec = {"name": "digits", "classes": 4, "train_images": 42, "test_images": 8}
    one, same, other = open_data(spec), open_data(spec), open_data({**spec, "seed": 1})
    assert torch.bincount(one.train.labels).tolist() == [11, 11, 10, 10]
    assert torch.bincount(one.test.labels).tolist() == [2, 2, 2, 2]
    assert one.digest() == same.digest() != other.digest()
    assert one.class_names == ("0", "1", "2", "3")


def test_an_uneven_folder_says_which_class_is_too_small(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "train/dog/0.png").unlink()
    spec = {"name": "image_folder", "root": str(tmp_path), "image_size": 8, "train_images": 12}
    with pytest.raises(UserError, match=r"asks for 12, there are 11"):
        open_data(spec)
    (tmp_path / "train/cat/extra.png").write_bytes((tmp_path / "train/cat/0.png").read_bytes())
    with pytest.raises(UserError, match=r"class number 1 has 5 images, 6 of each class"):
        open_data(spec)


def test_what_a_worker_holds_can_be_sent_to_a_new_process(tmp_path: Path) -> None:
    write_folder(tmp_path)
    data = open_data({"name": "image_folder", "root": str(tmp_path), "image_size": 8})
    feed = ImageBatches(
        data.train, data.preprocessing, batch_size=4, augment=["none"], seed=0, device=CPU
    )
    first = next(feed.epoch(0))  # the loader is in use
    reader = pickle.loads(pickle.dumps(feed.reader))
    plan = reader.plan(0)
    (pixels,) = reader.read(reader.step(plan.order, 0), plan.view_ids)
    assert torch.equal(data.preprocessing.normalise(pixels), first.images[0])


def test_an_image_of_16_bits_is_refused_not_clipped(tmp_path: Path) -> None:
    write_folder(tmp_path)
    deep = np.full((12, 16), 40_000, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "train/cat/0.png")
    data = open_data({"name": "image_folder", "root": str(tmp_path), "image_size": 8})
    with pytest.raises(UserError, match=r"more than 8 bits per channel"):
        data.train.fetch(torch.arange(1))


def test_folders_that_hold_no_images(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "train/.ipynb_checkpoints").mkdir()
    spec = {"name": "image_folder", "root": str(tmp_path), "image_size": 8}
    assert open_data(spec).class_names == ("cat", "dog")
    (tmp_path / "train/bird").mkdir()
    with pytest.raises(UserError, match=r"bird holds no images"):
        open_data(spec)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_one_sentence_from_a_worker_too(tmp_path: Path, workers: int) -> None:
    write_folder(tmp_path)
    (tmp_path / "train/cat/0.png").write_bytes(b"not an image")
    data = open_data({"name": "image_folder", "root": str(tmp_path), "image_size": 8})
    feed = ImageBatches(
        data.train, data.preprocessing, batch_size=4, augment=["none"], seed=0, device=CPU,
        workers=workers,
    )  # fmt: skip
    with pytest.raises(UserError) as caught:
        list(feed.epoch(0))
    assert "Traceback" not in str(caught.value)
    assert "cat/0.png is not a readable image" in str(caught.value)


def test_validation_comes_out_of_training() -> None:
    whole = open_data({"name": "digits"})
    data = open_data({"name": "digits", "validation": 100})
    assert data.validation is not None
    assert (len(data.train), len(data.validation)) == (len(whole.train) - 100, 100)
    assert data.test.digest() == whole.test.digest()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"train_images": 5000}, "data.train_images: asks for 5000, there are 1197"),
        ({"classes": 11}, "data.classes: asks for 11, the data set has 10"),
        ({"validation": 1197}, "data.validation: asks for 1197 of 1197"),
    ],
)
def test_asking_for_more_than_there_is(spec: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_data({"name": "digits", **spec})


def write_cifar(folder: Path, images: int = 30, classes: int = 5) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        pixels = rng.integers(0, 256, (images, 3072), dtype=np.uint8)
        content = {b"data": pixels, b"fine_labels": [i % classes for i in range(images)]}
        (folder / name).write_bytes(pickle.dumps(content))
    names = {b"fine_label_names": [f"class {i}".encode() for i in range(classes)]}
    (folder / "meta").write_bytes(pickle.dumps(names))


@pytest.mark.parametrize("place", ["cifar-100-python", "."])
def test_cifar_is_read_from_the_official_layout(tmp_path: Path, place: str) -> None:
    write_cifar(tmp_path / place)
    data = open_data({"name": "cifar100", "root": str(tmp_path)})
    assert len(data.train) == 30
    assert data.class_names[1] == "class 1"
    raw = pickle.loads((tmp_path / place / "train").read_bytes())
    expected = raw[b"data"][4].reshape(3, 32, 32)
    assert np.array_equal(data.train.fetch(torch.tensor([4]))[0].numpy(), expected)


def test_a_cifar_file_cannot_execute_anything(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (tmp_path / "harmed",)  # type: ignore[return-value]

    write_cifar(tmp_path)
    (tmp_path / "train").write_bytes(pickle.dumps({b"data": Attack()}))
    with pytest.raises(UserError, match=r"not a CIFAR file.*refers to"):
        open_data({"name": "cifar100", "root": str(tmp_path)})
    assert not (tmp_path / "harmed").exists()


def test_missing_cifar_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR100", offline)
    with pytest.raises(UserError, match=r"looked in .*cifar-100-python and .*no network.*put the"):
        open_data({"name": "cifar100", "root": str(tmp_path)})


def write_folder(root: Path, *, classes: tuple[str, ...] = ("cat", "dog"), size: int = 12) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (size, size + 4, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")


@pytest.mark.parametrize("augment", ["crop_flip", "resized_crop", "none"])
def test_an_image_folder(tmp_path: Path, augment: str) -> None:
    write_folder(tmp_path)
    spec = {"name": "image_folder", "root": str(tmp_path), "image_size": 8, "augment": augment}
    data = open_data(spec)
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (12, 6)

    def epoch(workers: int) -> torch.Tensor:
        feed = ImageBatches(
            data.train, data.preprocessing, batch_size=5, augment=[augment], seed=0, device=CPU,
            workers=workers,
        )  # fmt: skip
        list(feed.epoch(0))
        return torch.cat([b.images[0] for b in feed.epoch(1)])

    assert epoch(0).shape == (12, 3, 8, 8)
    assert torch.equal(epoch(0), epoch(2)), "the number of workers changed the images"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, "not found .looked in .*expected ROOT/train/CLASS"),
        (lambda root: (root / "images/train/a").mkdir(parents=True), "lacks train/ or test/"),
    ],
)
def test_a_folder_of_another_layout(tmp_path: Path, make: Any, words: str) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=words):
        open_data({"name": "image_folder", "root": str(tmp_path / "images")})


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "train/cat/0.png").write_bytes(b"not an image")
    data = open_data({"name": "image_folder", "root": str(tmp_path), "image_size": 8})
    with pytest.raises(UserError, match=r"cat/0\.png is not a readable image"):
        data.train.fetch(torch.arange(2))


def test_every_dataset_has_keyword_only_arguments() -> None:
    import inspect

    for name, function in DATASETS.items():
        kinds = {p.kind for p in inspect.signature(function).parameters.values()}
        assert kinds == {inspect.Parameter.KEYWORD_ONLY}, name


def test_a_rewritten_file_is_another_version_of_the_same_digest(tmp_path: Path) -> None:
    write_folder(tmp_path)
    spec = {"name": "image_folder", "root": str(tmp_path), "image_size": 8}
    before = open_data(spec).train
    path = before.paths[0]  # type: ignore[attr-defined]
    digest, version = before.digest(), before.version()
    assert open_data(spec).train.version() == version
    os.utime(path, ns=(1, 1))
    assert open_data(spec).train.version() != version
    assert open_data(spec).train.digest() == digest, "what was trained still fits"
