"""The package and its command's help load nothing heavy."""

import subprocess
import sys


def test_importing_export_loads_no_torch_and_no_onnx() -> None:
    code = (
        "import sys, export, export.__main__, export.hub, export.bundle.predict_command; "
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
