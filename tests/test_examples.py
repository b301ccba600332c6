"""The examples in the docstrings of packages run, and their `__all__` names what is there."""

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import compress
from compress import methods
from compress.methods import METHODS
from tests.export.tracing import traced_exports

PACKAGES = (
    *(f"compress.{name}" for name in compress.__all__ if name != "errors"),
    "eval.data",
    "eval.detection",
    "eval.knn",
    "eval.linear_probe",
    "eval.segmentation",
    "export",
)


@pytest.mark.parametrize("name", PACKAGES)
def test_public_names_exist_and_the_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    package = importlib.import_module(name)
    assert all(getattr(package, public) is not None for public in package.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        package.no_such_name  # noqa: B018
    with traced_exports():
        doctest.testmod(package, optionflags=doctest.ELLIPSIS, raise_on_error=True)


def test_the_example_of_the_whole_trains_networks_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    done = doctest.testmod(compress, optionflags=doctest.ELLIPSIS, raise_on_error=True)
    assert done.attempted > 10
    assert list(tmp_path.glob("*/checkpoint.safetensors"))


def test_import_compress_imports_nothing_else() -> None:
    code = (
        "import sys, compress\n"
        "assert not [name for name in sys.modules if name.startswith(('compress.', 'torch'))]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Arrangements of another method's loss: what is aligned, what learns beside it or after it.
OF_ANOTHER = {"norm_crd", "simkd_joint", "simkd_plus", "simkd_sequential", "wcord"}


@pytest.mark.parametrize("name", sorted({*METHODS} - {"none"} - OF_ANOTHER))
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


@pytest.mark.parametrize("command", ["export", "export.verify"])
def test_the_help_of_a_command_does_not_import_torch(command: str) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['{command}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('{command}', run_name='__main__')\n"
        "finally:\n"
        "    assert not {'torch', 'onnx', 'matplotlib'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
