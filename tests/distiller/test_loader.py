"""Loaders that give something else than images and class numbers: one sentence on what to give."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from compress.data import Preprocessing
from compress.distiller import Indexed
from compress.distiller.loader import Expected, memory_images
from compress.errors import UserError
from tests.distiller.making import CLASSES, PREPROCESSING, SIZE, Pictures, distiller, loader


class _Items(Dataset[Any]):
    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return self.items[index % len(self.items)]


class _Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


IMAGE = torch.zeros(3, SIZE, SIZE)
GIVEN: list[tuple[Any, str]] = [
    ([(IMAGE, 0)], "expected a torch.utils.data.DataLoader of .* got a list"),
    (DataLoader(_Stream(), 4), "no length"),
    (DataLoader(_Items((IMAGE, 0)), 16, drop_last=True), "empty: 8 images in batches of 16, drop"),
    (DataLoader(_Items({"image": IMAGE}), 4), "gives a dict; expected"),
    (DataLoader(_Items((IMAGE, 0, 0, 0)), 4), "a list of 4; expected"),
    (DataLoader(_Items((IMAGE[:, 1:], 0)), 4), r"\(4, 3, 7, 8\); expected float32 \(N, 3, 8"),
    (DataLoader(_Items((IMAGE[:1], 0)), 4), r"expand\(-1, 3, -1, -1\)"),
    (DataLoader(_Items((IMAGE.double(), 0)), 4), "images as float64"),
    (DataLoader(_Items((IMAGE, CLASSES)), 4), "from 5 to 5; of 5 classes they are 0 to 4"),
    (DataLoader(_Items((IMAGE, -1)), 4), "from -1 to -1"),
    (DataLoader(_Items((IMAGE, 0.5)), 4), r"labels as float64 \(4,\)"),
    (DataLoader(_Items((IMAGE, torch.eye(5)[0])), 4), r"labels as float32 \(4, 5\)"),
    (DataLoader(_Items((IMAGE, 0)), 1), "one image, and batch norm needs two"),
    (DataLoader(_Items(((IMAGE, IMAGE), 0)), 4), "reads 1 view of each image, the loader gives 2"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "message"), GIVEN)
def test_a_loader_that_cannot_be_read_is_refused(given: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        distiller().fit(given, epochs=1, directory=tmp_path)
    assert not [*tmp_path.iterdir()]


def test_batches_of_other_sizes_are_trained_and_a_lone_image_is_left_out(tmp_path: Path) -> None:
    sizes: list[int] = []

    def record(module: Any, inputs: tuple[Tensor]) -> None:
        if module.training:
            sizes.append(len(inputs[0]))

    for count, last in ((20, 4), (17, 8)):
        own = distiller()
        own.student.register_forward_pre_hook(record)
        sizes.clear()
        own.fit(loader(count), epochs=1, directory=tmp_path / str(count))
        assert sizes[-1] == last
        assert len(own.module.method.context.labels) == 0  # read where a method needs them alone


def test_an_index_that_is_not_the_images_place_is_refused(tmp_path: Path) -> None:
    class Shifted(Indexed):
        def __getitem__(self, index: int) -> tuple[Any, Any, int]:
            image, label, _ = super().__getitem__(index)
            return image, label, self.place(index)

        def place(self, index: int) -> int:
            return (index + 1) % len(self)

    class Beyond(Shifted):
        def place(self, index: int) -> int:
            return index + 20

    for kind, message in ((Shifted, "not those of the training set"), (Beyond, "it is 0 to 23")):
        own = distiller("crd", arguments={"negatives": 6})
        with pytest.raises(UserError, match=message):
            own.fit(DataLoader(kind(Pictures()), 8), epochs=1, directory=tmp_path)
    with pytest.raises(UserError, match="expected the class numbers of the 24"):
        data = DataLoader(Indexed(Pictures()), 8)
        distiller("crd").fit(data, epochs=1, directory=tmp_path, labels=torch.zeros(9).long())


def test_an_indexed_data_set_gives_views_that_were_augmented_one_by_one() -> None:
    torch.manual_seed(0)
    images, label, index = Indexed(Pictures(augment=True), views=3)[7]
    assert (label, index, len(images)) == (2, 7, 3)
    assert not all(torch.equal(images[0], other) for other in images[1:])
    plain, label, index = Indexed(Pictures())[7]
    assert torch.equal(plain, Pictures()[7][0]) and (label, index) == (2, 7)


@pytest.mark.parametrize("method", ["evaluate", "export_bundle"])
def test_images_that_were_normalised_otherwise_are_refused(tmp_path: Path, method: str) -> None:
    other = Preprocessing(SIZE, (0.5, 0.4, 0.3), (0.1, 0.1, 0.1))
    own = distiller(preprocessing=other)
    own.prepare(loader(raw=True), epochs=1)
    assert own.evaluate(loader(raw=True))  # normalised here, as stated
    wrong = distiller(preprocessing=Preprocessing(SIZE, PREPROCESSING.mean, (1.0, 1.0, 1.0)))
    wrong.prepare(loader(raw=True), epochs=1)
    with pytest.raises(UserError, match="give the preprocessing that the loader normalises with"):
        if method == "evaluate":
            wrong.evaluate(loader())
        else:
            wrong.export_bundle(tmp_path / "bundle", test_loader=loader())


def test_images_for_a_bundle_are_the_pixels_that_were_normalised() -> None:
    expected = Expected(PREPROCESSING, CLASSES)
    for raw in (False, True):
        images = memory_images(loader(raw=raw), expected, None)
        assert torch.equal(images.pixels, Pictures().pixels)
        assert torch.equal(images.labels, Pictures().labels)
    assert len(memory_images(loader(), expected, 11)) == 11
