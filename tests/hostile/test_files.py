"""Files from outside are read or refused in a sentence, whatever they hold; see `tests.hostile`."""

from pathlib import Path

import pytest

from tests.hostile.attack import attack
from tests.hostile.datasets import LAYOUTS

_CASES = 14


@pytest.mark.parametrize("seed", range(_CASES))
@pytest.mark.parametrize("layout", [*LAYOUTS, "weights"])
def test_hostile_files_load_or_are_refused(
    tmp_path: Path, layout: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR100", offline)
    attack(layout, seed, tmp_path)
