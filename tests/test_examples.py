"""Every public name of a package can be imported, and the example in its docstring runs."""

import doctest
import importlib
import subprocess
import sys

import pytest

from tests.export.tracing import traced_exports

PACKAGES = (
    "compress.accounting",
    "compress.models",
    "compress.onnx",
    "compress.reporting",
    "export",
)


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_exist_and_the_example_runs(package: str) -> None:
    module = importlib.import_module(package)
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018
    with traced_exports():
        assert doctest.testmod(module, raise_on_error=True).failed == 0


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
