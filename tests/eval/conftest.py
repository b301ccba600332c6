"""Scenes and encoders small enough for the tests of this folder."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compress.data import Preprocessing
from compress.model_files import Encoder
from eval.data.scenes import write_scenes


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are faster on one thread, and far faster on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class TinyEncoder(Encoder):
    """Two convolutions: stride 4, 8 channels, random weights that count as loaded."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.channels, self.stride = 8, 4
        self.preprocessing = Preprocessing(16, (0.3, 0.3, 0.3), (0.3, 0.3, 0.3))
        self.matched_percent = 100.0


@pytest.fixture
def encoder() -> Encoder:
    return TinyEncoder()


@pytest.fixture
def drawn_digits() -> tuple[Tensor, Tensor]:
    """Six 8x8 drawings of each of three classes: a bar, a ring and a cross."""
    bar, ring, cross = (torch.zeros(8, 8) for _ in range(3))
    bar[1:7, 3:5] = 16
    ring[1:7, 1:7] = 16
    ring[3:5, 3:5] = 0
    cross[3:5, 0:8] = 16
    cross[0:8, 3:5] = 16
    pixels = torch.stack([bar, ring, cross]).repeat_interleave(6, 0).to(torch.uint8)
    return pixels, torch.arange(3).repeat_interleave(6)


@pytest.fixture
def scenes(tmp_path: Path, drawn_digits: tuple[Tensor, Tensor]) -> Callable[..., Path]:
    """Writes scenes into a new folder and returns it."""

    def write(name: str = "scenes", *, train: int = 6, test: int = 4, seed: int = 0) -> Path:
        arguments = {"classes": 3, "train_images": train, "test_images": test, "seed": seed}
        write_scenes(tmp_path / name, *drawn_digits, **arguments)
        return tmp_path / name

    return write
