"""Small networks, pictures and loaders for tests of the Distiller."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from compress.data import Preprocessing
from compress.distiller import Distiller
from compress.seeding import seeded

CLASSES, SIZE = 5, 8
SHAPE = (3, SIZE, SIZE)
PREPROCESSING = Preprocessing(SIZE, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


class Pictures(Dataset[Any]):
    """Noise with the colour of its class; normalised here, or uint8; shifted if `augment`."""

    def __init__(self, count: int = 24, *, augment: bool = False, raw: bool = False) -> None:
        draw = torch.Generator().manual_seed(count)
        self.labels = torch.arange(count) % CLASSES
        colours = torch.randint(60, 200, (CLASSES, 3, 1, 1), generator=draw)
        noise = torch.randint(-40, 40, (count, *SHAPE), generator=draw)
        self.pixels = (colours[self.labels] + noise).clamp(0, 255).to(torch.uint8)
        self.augment, self.raw = augment, raw

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.pixels[index]
        if self.augment:
            image = image.roll(int(torch.randint(4, ())), -1)
        image = image if self.raw else PREPROCESSING.normalise(image[None])[0]
        return image, int(self.labels[index])


def loader(count: int = 24, batch_size: int = 8, **options: Any) -> DataLoader[Any]:
    own = {key: options.pop(key) for key in ("augment", "raw") if key in options}
    return DataLoader(Pictures(count, **own), batch_size, **options)


class Small(nn.Module):
    """Three resolutions, and a linear layer on the mean of the last map."""

    def __init__(self, num_classes: int = CLASSES, width: int = 8) -> None:
        super().__init__()
        widths = (3, width, width, 2 * width)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.ReLU())
                for a, b, stride in zip(widths, widths[1:], (1, 2, 2), strict=False)
            )
        )
        self.classifier = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.layers(images).mean((2, 3)))
        return logits


def teacher(seed: int = 1, classes: int = CLASSES) -> nn.Module:
    with seeded(seed, "teacher"):
        return Small(classes, 16)


def student(seed: int = 2, classes: int = CLASSES) -> nn.Module:
    with seeded(seed, "student"):
        return Small(classes)


def distiller(method: str = "at", **options: Any) -> Distiller:
    options = {"classes": CLASSES, "preprocessing": PREPROCESSING, **options}
    learner, known = options.pop("student", None), options.pop("teacher", None)
    return Distiller(learner or student(), known or teacher(), method, **options)


def same(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in state.items())
