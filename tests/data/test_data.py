"""Data: order and augmentation are pure functions, subsets are balanced, files are read safely."""

import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2.functional import resize

from compress.data import (
    DATASETS,
    Batch,
    FileImages,
    ImageBatches,
    MemoryImages,
    Preprocessing,
    open_data,
)
from compress.data.augment import AUGMENTATIONS, PAD, crop_box, shift_and_flip
from compress.data.digits import held_out_scenes_digits
from compress.data.image_files import check_whole, read_rgb, upright_size
from compress.distributed.collectives import rows_of_part
from compress.errors import UserError
from compress.teacher.cache.rows import FORMAT

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


@pytest.mark.parametrize("shape", [(256, 256), (375, 500), (300, 600), (500, 100), (3, 4)])
def test_crops_are_distributed_as_torchvisions(shape: tuple[int, int]) -> None:
    count, image = 6000, torch.empty(1, *shape)
    ids = torch.randint(2**32, (count,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = torch.tensor(
            [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in ids]
        )
    ours = torch.tensor([crop_box(*shape, seed) for seed in ids])
    for said, of in {
        "area": lambda top, left, height, width: height * width,
        "aspect": lambda top, left, height, width: width / height,
        "centre across": lambda top, left, height, width: left + width / 2,
        "centre down": lambda top, left, height, width: top + height / 2,
    }.items():
        values = [of(*boxes.double().T) for boxes in (ours, theirs)]
        steps = torch.cat(values).unique()
        shares = [torch.searchsorted(v.sort()[0], steps, right=True) / count for v in values]
        # Two samples of one distribution differ by more once in a million.
        assert (shares[0] - shares[1]).abs().max() < 2.69 * (2 / count) ** 0.5, said
    top, left, height, width = ours.T
    assert (ours >= 0).all() and (height * width > 0).all()
    assert (top + height <= shape[0]).all() and (left + width <= shape[1]).all()


def test_an_id_of_a_crop_stands_for_one_view_for_ever() -> None:
    """Targets on disk belong to views: where these numbers change, the cache's FORMAT must."""
    generator = torch.get_rng_state()
    found = [crop_box(300, 600, seed) for seed in (0, 1, 2**32 - 1)]
    boxes = [(19, 141, 261, 280), (30, 80, 169, 145), (6, 281, 283, 250)]
    assert (FORMAT, found) == (2, boxes)
    images, resized = some_images(2, size=40), AUGMENTATIONS["resized_crop"]
    assert resized.views == 2**33
    one, mirrored = (
        resized.apply(images, torch.tensor([1]), torch.tensor([view]), 8) for view in (14, 15)
    )
    assert torch.equal(one.flip(-1), mirrored)
    top, left, height, width = crop_box(40, 40, 7)
    cut = images.pixels[1:, :, top : top + height, left : left + width]
    assert torch.equal(one, resize(cut, [8, 8], antialias=True))
    assert torch.equal(generator, torch.get_rng_state())


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


@pytest.mark.parametrize("rows", [9, 19, 24])
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("processes", [2, 3])
def test_a_part_has_the_same_images_in_any_number_of_processes(
    processes: int, parts: int, rows: int
) -> None:
    numbers = torch.arange(rows)
    whole = Batch((numbers,), (numbers,), numbers, numbers, 0, 0, view_numbers=(numbers,))
    own = [rows_of_part(rows, rank, processes) for rank in range(processes)]
    shares = [
        Batch(*((numbers[o],) for _ in range(2)), numbers[o], numbers[o], 0, 0,
              view_numbers=(numbers[o],), start=o.start, of=rows).split(parts)
        for o in own
    ]  # fmt: skip
    expected = whole.split(parts)
    assert sum(part.share for part in expected) == pytest.approx(1)
    assert torch.cat([part.index for part in expected]).unique().tolist() == list(range(rows))
    counted = 0
    for part, of_ranks in zip(expected, zip(*shares, strict=True), strict=True):
        assert part.start == counted and part.whole == rows
        for one in of_ranks:  # their rows follow each other, as those of the whole part do
            assert one.start == counted and one.whole == rows
            assert len(one.index) > 0
            counted += len(one.index)
        for name in ("index", "labels"):
            found = torch.cat([getattr(one, name) for one in of_ranks])
            assert torch.equal(found, getattr(part, name))
        for name in ("images", "view_ids", "view_numbers"):
            assert torch.equal(torch.cat([getattr(o, name)[0] for o in of_ranks]), part.index)
        assert counted == part.start + len(part.index)
    assert counted == rows


def test_every_image_once_per_epoch_and_no_batch_of_one() -> None:
    seen = torch.cat([b.index for b in batches(batch_size=5).epoch(0)])
    assert sorted(seen.tolist()) == list(range(10))
    assert len(batches(batch_size=3)) == 3
    assert [len(b.labels) for b in batches(batch_size=3).epoch(0)] == [3, 3, 3]


def test_what_several_processes_leave_out_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(processes: int, batch_size: int, steps: int) -> str:
        monkeypatch.setattr("compress.data.batches.world_size", lambda: processes)
        assert len(batches(batch_size)) == steps
        return " ".join(capsys.readouterr().out.split())

    assert said(2, 4, 3) == ""
    assert said(4, 4, 2).startswith("each epoch leaves out 2 of 10 training images")
    assert said(4, 4, 2) == "", "of the next training"
    assert said(4, 9, 1) == "", "one process leaves one image out, too"


def test_normalisation_by_hand() -> None:
    preprocessing = Preprocessing(1, (0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    pixel = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    assert preprocessing.normalise(pixel).flatten().tolist() == pytest.approx([1.0, -1.0, 0.1])


SIZES_AS_DRAWN = (("digit_pairs", 16), ("digits", 8))


def test_digits_are_split_without_overlap_and_balanced() -> None:
    data = open_data({"name": "digits"})
    assert len(data.train), len(data.test) == (1197, 300)
    assert torch.bincount(data.test.labels).tolist() == [30] * 10
    pixels, labels = held_out_scenes_digits()
    assert torch.bincount(labels).tolist() == [30] * 10
    views = {bytes(p.numpy()) for p in pixels}
    assert len(views) == 300
    original = open_data({"name": "digits", "image_size": 8})
    for split in (original.train, original.test):
        digits = split.fetch(torch.arange(len(split)))[:, 0]
        assert not views & {bytes(d.numpy().tobytes()) for d in digits}


def test_pairs_of_digits_are_made_of_their_own_splits_digits() -> None:
    """A digit that nothing overlaps is of the same split and one of the two of the class."""
    pairs, digits = (open_data({"name": name, "image_size": s}) for name, s in SIZES_AS_DRAWN)
    assert (len(pairs.train), len(pairs.test)) == (3000, 1000)
    assert torch.bincount(pairs.test.labels).tolist() == [10] * 100
    assert pairs.class_names[7] == "07"
    for split, known in ((pairs.train, digits.train), (pairs.test, digits.test)):
        images = split.fetch(torch.arange(0, len(split), 31))[:, 0]
        drawn = known.fetch(torch.arange(len(known)))[:, 0].flatten(1)
        count = 0
        for image, number in zip(images, split.labels[::31].tolist(), strict=True):
            patches = image.unfold(0, 8, 1).unfold(1, 8, 1).flatten(0, 1).flatten(1)
            members = (patches[:, None] == drawn).all(2).any(0).nonzero().flatten()
            recognised = {*known.labels[members].tolist()}
            assert recognised <= {number // 10, number % 10}
            count += len(recognised)
        assert count > 3


def test_subsets_are_balanced_and_seeded() -> None:
    spec = {"name": "digits", "classes": 4, "train_images": 42, "test_images": 8}
    one, same, other = open_data(spec), open_data(spec), open_data({**spec, "seed": 1})
    assert torch.bincount(one.train.labels).tolist() == [11, 11, 10, 10]
    assert torch.bincount(one.test.labels).tolist() == [2, 2, 2, 2]
    assert one.digest() == same.digest() != other.digest()
    assert one.class_names == ("0", "1", "2", "3")


def test_a_share_of_the_training_images_is_random_and_seeded() -> None:
    whole = open_data({"name": "digits", "image_size": 8})
    spec = {"name": "digits", "image_size": 8, "train_share": 0.25}
    one, same, other = open_data(spec), open_data(spec), open_data({**spec, "seed": 1})
    assert len(one.train) == round(0.25 * len(whole.train))
    assert one.digest() == same.digest() != other.digest()
    assert one.test.digest() == whole.test.digest()
    # Not class-balanced: those of ten classes are not all equal, give or take one.
    counts = torch.bincount(one.train.labels)
    assert int(counts.max()) - int(counts.min()) > 1
    # A smaller share of validation comes out of what is left.
    split = open_data({**spec, "validation": 30})
    assert split.validation is not None
    images = {bytes(p.tobytes()) for p in one.train.pixels.numpy()}  # type: ignore[attr-defined]
    held = {bytes(p.tobytes()) for p in split.validation.pixels.numpy()}  # type: ignore[attr-defined]
    assert held <= images
    assert open_data({**spec, "train_share": 1.0}).train.digest() == whole.train.digest()


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


def coloured(height: int = 8, width: int = 12) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def save_turned(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    coloured().save(path, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_an_image_is_turned_only_where_that_is_asked(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    path = tmp_path / f"turned.{suffix}"
    save_turned(path, orientation)
    with Image.open(path) as image:
        expected = np.array(ImageOps.exif_transpose(image))
    pixels = read_rgb(path, upright=True).permute(1, 2, 0).numpy()
    assert np.array_equal(pixels, expected)
    if suffix != "tif":  # these Pillow turns by itself, and their header is not sure
        assert upright_size(path) == expected.shape[:2]
        assert read_rgb(path, upright=False).shape == (3, 8, 12)


def test_damaged_exif_turns_nothing(tmp_path: Path) -> None:
    path = tmp_path / "damaged.png"
    coloured().save(path, exif=b"Exif\0\0no exif at all")
    assert upright_size(path) == (8, 12)
    assert np.array_equal(read_rgb(path, upright=True).permute(1, 2, 0), np.array(coloured()))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "progressive JPEG", "BMP", "GIF"])
def test_a_file_that_ends_early_is_no_whole_image(tmp_path: Path, file_format: str) -> None:
    path, name = tmp_path / "image", file_format.split()[-1]
    coloured(96, 128).save(path, name, **({"progressive": True} if " " in file_format else {}))
    check_whole([path])
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    assert upright_size(path) == (96, 128)
    with pytest.raises(UserError, match=r"image is not a readable image"):
        check_whole([path])


@pytest.mark.parametrize("read", [upright_size, lambda path: read_rgb(path, upright=False)])
@pytest.mark.parametrize("kind", ["I;16", "I", "F", "huge", "text number", "missing"])
def test_what_is_no_8_bit_image_is_one_sentence(
    tmp_path: Path, read: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image.tif"
    if kind == "huge":
        coloured().save(path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    elif kind == "text number":
        path.write_bytes(b"P6 12 x8 255\n")
    elif kind != "missing":
        Image.new(kind, (12, 8)).save(path)
    said = {"huge": "readable .*bomb", "missing": "not found", "text number": "readable"}
    with pytest.raises(UserError, match=rf"image\.tif .*{said.get(kind, 'more than 8 bits')}"):
        read(path)


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
        (
            {"train_share": 0.001},
            "data.train_share: 0.001 of 1197 training images leaves none of 9",
        ),
    ],
)
def test_asking_for_more_than_there_is(spec: dict[str, float], words: str) -> None:
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


class Touch:
    """Named in a pickle, it is refused; called, it would do nothing."""


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("train", {b"fine_labels": [2**70]}, "no list of fine labels"),
        ("train", {b"fine_labels": [-1] * 30}, "no list of fine labels"),
        ("train", {b"fine_labels": [0.5] * 30}, "no list of fine labels"),
        ("train", {b"fine_labels": [], b"data": np.zeros((0, 3072), np.uint8)}, "0 images"),
        ("train", {b"data": np.full((30, 3072), None)}, "an array of type 'O8'"),
        ("train", {b"data": np.zeros(30, [("a", "O")])}, "an array of type 'V8'"),
        ("train", {b"data": [[-1] * 3072] * 30}, "no pixels of 32x32 images"),
        ("train", {b"data": np.zeros((30, 3071), np.uint8)}, "no pixels of 32x32 images"),
        ("train", {b"data": np.ndarray}, "refers to numpy.ndarray|no pixels"),
        (
            "train",
            {b"data": Touch()},
            "refers to tests.data.test_data.Touch, which is not an array",
        ),
        ("meta", {b"fine_label_names": 3}, "'int' object is not iterable"),
        ("meta", {b"fine_label_names": [3] * 5}, "a class name in it is no text"),
        ("meta", {b"fine_label_names": [b"\xff"] * 5}, "can't decode"),
        ("meta", [1], "it holds a list"),
    ],
)
def test_a_cifar_file_with_something_else_in_it(
    tmp_path: Path, file: str, content: Any, words: str
) -> None:
    write_cifar(tmp_path)
    whole = pickle.loads((tmp_path / file).read_bytes())
    changed = {**whole, **content} if isinstance(content, dict) else content
    (tmp_path / file).write_bytes(pickle.dumps(changed, protocol=4))
    with pytest.raises(UserError, match=rf"{file} .*({words})"):
        open_data({"name": "cifar100", "root": str(tmp_path)})


def test_a_cifar_file_gives_numpy_nothing_to_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No state of a file reaches numpy: a crafted type would let it follow any address."""
    write_cifar(tmp_path)
    types: list[type] = []
    reader = pickle._Unpickler.load_build  # type: ignore[attr-defined]

    def watched(unpickler: Any) -> None:
        types.append(type(unpickler.stack[-2]))
        reader(unpickler)

    table = pickle._Unpickler.dispatch  # type: ignore[attr-defined]
    monkeypatch.setitem(table, pickle.BUILD[0], watched)
    open_data({"name": "cifar100", "root": str(tmp_path)})
    assert types and all(kind.__module__ == "compress.data.cifar_pickles" for kind in types)


def test_a_cifar_file_cannot_fill_the_memory_with_one_number(tmp_path: Path) -> None:
    """Python's fast unpickler makes room for as many objects as a number in the file says."""
    write_cifar(tmp_path)
    (tmp_path / "meta").write_bytes(b"\x80\x02}r\x00\x00\x00\x04.")
    with pytest.raises(UserError, match=r"meta'? names 0 classes"):
        tracemalloc.start()
        try:
            open_data({"name": "cifar100", "root": str(tmp_path)})
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    assert peak < 1 << 26, "512 MB for a file of eight bytes"


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_cifar_is_read_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    write_cifar(tmp_path)
    expected = open_data({"name": "cifar100", "root": str(tmp_path)})
    for name in ("train", "test", "meta"):
        content = pickle.loads((tmp_path / name).read_bytes())
        if protocol == 2 and b"data" in content:
            content[b"data"] = np.asfortranarray(content[b"data"])
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=protocol))
    dataset = open_data({"name": "cifar100", "root": str(tmp_path)})
    assert dataset.digest() == expected.digest() and dataset.class_names == expected.class_names


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


@pytest.mark.parametrize("inside", ["", "train"])
def test_of_folders_of_classes_alone_a_share_of_each_is_held_out(
    tmp_path: Path, inside: str
) -> None:
    for name, count in {"cat": 10, "dog": 5, "owl": 2}.items():
        (folder := tmp_path / inside / name).mkdir(parents=True)
        for i in range(count):
            coloured().save(folder / f"{i}.png")
    spec = {"name": "image_folder", "root": str(tmp_path), "image_size": 8}
    data, other = open_data(spec), open_data(spec, seed=1)
    assert data.class_names == ("cat", "dog", "owl")
    assert torch.bincount(data.train.labels).tolist() == [8, 4, 1]
    assert torch.bincount(data.test.labels).tolist() == [2, 1, 1]
    assert isinstance(data.train, FileImages) and isinstance(data.test, FileImages)
    assert len({*data.train.paths, *data.test.paths}) == 17, "an image is in both splits"
    assert data.digest() == open_data(spec).digest() != other.digest()
    (tmp_path / inside / "owl/1.png").unlink()
    with pytest.raises(UserError, match="class 'owl' has 1 image; 2 are needed"):
        open_data(spec)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, "not found .looked in .*expected ROOT/train/CLASS"),
        (lambda root: (root / "images/train/a").mkdir(parents=True), "train' holds 1 folders"),
        (lambda root: (root / "images/test/a").mkdir(parents=True), "lacks train/; expected"),
        (lambda root: (root / "images").mkdir(), "images' holds 0 folders .*ROOT/CLASS/images"),
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
