"""Turn a trained student into files that run anywhere: ONNX, int8, bundles, detectron2.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from compress.models import build
    >>> from export import export_onnx
    >>> exported = export_onnx(
    ...     build("resnet8", num_classes=2),
    ...     Path(tempfile.mkdtemp()) / "student.onnx",
    ...     input_shape=(3, 8, 8),
    ...     class_names=["cat", "dog"],
    ...     preprocessing={},
    ...     fingerprint="",
    ... )
    >>> exported.files, exported.opset
    (('student.onnx',), 18)

`bundle_request` and `write_bundle` make a bundle of a student of a run directory, as the command
`python -m export RUN` does; `verify_bundle` checks one, as `python -m export.verify BUNDLE` does;
`push_to_hub` uploads one, as `compress push BUNDLE OWNER/NAME` does.
"""

from typing import TYPE_CHECKING

from compress import import_lazily

if TYPE_CHECKING:
    from export.bundle.request import BundleRequest
    from export.bundle.writer import write_bundle
    from export.hub import push_to_hub
    from export.onnx import Exported, export_encoder, export_onnx
    from export.stage import bundle_request
    from export.verify.command import verify_bundle

__all__ = [
    "BundleRequest",
    "Exported",
    "bundle_request",
    "export_encoder",
    "export_onnx",
    "push_to_hub",
    "verify_bundle",
    "write_bundle",
]

_MODULES = {
    "BundleRequest": "export.bundle.request",
    "Exported": "export.onnx",
    "bundle_request": "export.stage",
    "export_encoder": "export.onnx",
    "export_onnx": "export.onnx",
    "push_to_hub": "export.hub",
    "verify_bundle": "export.verify.command",
    "write_bundle": "export.bundle.writer",
}

# The commands' --help needs neither torch nor onnx.
__getattr__ = import_lazily(__name__, _MODULES)
