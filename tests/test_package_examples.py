"""The examples in the docstrings of packages run, and their `__all__` names what is there."""

import doctest
import importlib
from pathlib import Path

import pytest

from compress import methods
from compress.methods import METHODS

PACKAGES = (
    "compress.data",
    "compress.methods",
    "eval.data",
    "eval.detection",
    "eval.knn",
    "eval.linear_probe",
    "eval.segmentation",
)


@pytest.mark.parametrize("name", PACKAGES)
def test_the_example_of_a_package_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    package = importlib.import_module(name)
    assert all(hasattr(package, public) for public in package.__all__)
    failed, examples = doctest.testmod(package, optionflags=doctest.ELLIPSIS)
    assert (failed, examples > 1) == (0, True)


@pytest.mark.parametrize("name", sorted({*METHODS} - {"none"}))
def test_the_losses_of_a_method_are_public(name: str) -> None:
    module = importlib.import_module(f"compress.methods.{name}")
    losses = {
        key
        for key, value in vars(module).items()
        if key.endswith("_loss") and value.__module__ == module.__name__
    }
    assert f"{name}_loss" in losses
    assert losses <= {*methods.__all__}
    assert all(getattr(methods, loss) is getattr(module, loss) for loss in losses)
