"""A deployed network as a self-contained ONNX file."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from compress.errors import UserError
from compress.model_files.artifacts import Encoder
from compress.models.segmentation.pyramid import enlarge
from compress.onnx.files import move, open_session, run_session, write_model
from compress.onnx.graphs import translate
from export.bundle.interfaces import MEANINGS, PIXELS

__all__ = [
    "EMBEDDING",
    "FEATURES",
    "OUTPUT",
    "Enlarged",
    "Exported",
    "export_encoder",
    "export_onnx",
]

OUTPUT, EMBEDDING, FEATURES = "logits", "embedding", "features"
_AGREEMENT = 1e-3  # of the largest feature, between torch and the encoder's file


class Enlarged(torch.nn.Module):
    """A dense network whose logits have the image's size: (N, 3, H, W) -> (N, K, H, W)."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Enlarge the network's logits (N, K, h, w) as the task does."""
        return enlarge(self.network(images), images.shape[-2:])


@dataclass(frozen=True)
class Exported:
    """Names and size of the files written: the model first, then its tensors' if apart."""

    files: tuple[str, ...]
    size_bytes: int
    opset: int
    dynamic_size: bool = False  # height and width are free, not only the batch

    def as_dict(self) -> dict[str, Any]:
        """The values as JSON; `exporter` is always torch's newer one."""
        return {**asdict(self), "files": list(self.files), "exporter": "dynamo"}


def export_onnx(
    network: torch.nn.Module,
    path: Path,
    *,
    input_shape: tuple[int, int, int],
    class_names: Sequence[str],
    preprocessing: Mapping[str, Any],
    fingerprint: str,
    opset: int = 18,
    raw_pixels: bool = False,
    embed_up_to: int | None = None,
    dense: bool = False,
) -> Exported:
    """Write `network` with batch norm folded, in eval mode, weights inside, any batch size.

    The file's only input is `images`, normalised float32 (N, C, H, W), or with `raw_pixels` uint8
    (N, H, W, 3) that it normalises itself; its only output `logits` (N, K), or without class names
    `embedding` (N, D). That of a dense network takes images of any H and W, and its `logits`
    (N, K, H, W) are enlarged to the image inside the file. Its metadata hold `class_names` and
    `preprocessing` as JSON, `input`, `output` and the `fingerprint`.

    Args:
        network: takes (N, C, H, W), gives (N, K), or (N, K, h, w) where it is `dense`; on any
            device, not changed.
        path: written in one step. Above `embed_up_to` bytes (default: what protobuf can hold) the
            tensors go to `NAME.data` beside it, which must not be renamed.
        input_shape: (C, H, W).

    Raises:
        UserError: torch cannot express the network in ONNX.
    """
    output = OUTPUT if class_names else EMBEDDING
    height, width = (1, 2) if raw_pixels else (2, 3)
    model = translate(
        Enlarged(network) if dense else network,
        input_shape=input_shape,
        output=output,
        dynamic={0: "batch", height: "height", width: "width"} if dense else {0: "batch"},
        opset=opset,
        raw_pixels=preprocessing if raw_pixels else None,
    )
    metadata = {
        "class_names": json.dumps(list(class_names)),
        "preprocessing": json.dumps(dict(preprocessing)),
        "input": "uint8 pixels NHWC" if raw_pixels else "normalised float32 NCHW",
        "output": MEANINGS[PIXELS if dense else output],
        "fingerprint": fingerprint,
    }
    files, size = write_model(model, path, metadata, embed_up_to)
    return Exported(files, size, opset, dynamic_size=dense)


def export_encoder(
    encoder: Encoder,
    path: Path,
    *,
    fingerprint: str = "",
    opset: int = 18,
    embed_up_to: int | None = None,
) -> Exported:
    """Write the encoder: normalised `images` (N, 3, H, W) -> `features`, batch norm folded.

    H and W are free where that can be exported and the file agrees with torch at another size;
    else they are the image size that the encoder was trained at. `dynamic_size` says which.

    Raises:
        UserError: torch cannot export it, or the file computes something else.
    """
    write = partial(
        _write_encoder, encoder, path, fingerprint=fingerprint, opset=opset, embed_up_to=embed_up_to
    )
    try:
        return write({0: "batch", 2: "height", 3: "width"})
    except UserError:
        return write({0: "batch"})


def _write_encoder(
    encoder: Encoder,
    path: Path,
    dynamic: Mapping[int, str],
    *,
    fingerprint: str,
    opset: int,
    embed_up_to: int | None,
) -> Exported:
    size = encoder.preprocessing.image_size
    model = translate(
        encoder,
        input_shape=(3, size, size),
        output=FEATURES,
        dynamic=dynamic,
        opset=opset,
    )
    metadata = {
        "preprocessing": json.dumps(encoder.preprocessing.as_dict()),
        "input": "normalised float32 NCHW",
        "output": MEANINGS[FEATURES],
        "fingerprint": fingerprint,
    }
    is_free = 2 in dynamic
    # Moved to `path` only after it has been compared.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        trial = Path(folder) / path.name
        files, written = write_model(model, trial, metadata, embed_up_to)
        _require_agreement(encoder, trial, size, size)
        if is_free:
            _require_agreement(encoder, trial, size + encoder.stride, size + 2 * encoder.stride)
        move(trial.parent, path.parent, files)
    return Exported(files, written, opset, dynamic_size=is_free)


def _require_agreement(encoder: Encoder, path: Path, height: int, width: int) -> None:
    """Refuse a file whose maps are not the encoder's.

    Raises:
        UserError: they differ, or one of the two does not take images of this size.
    """
    images = torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(0))
    network = encoder.body.eval()
    try:
        with torch.inference_mode():
            expected = network(images)
        actual = torch.from_numpy(run_session(open_session(path), images.numpy()))
        difference, scale = float((actual - expected).abs().max()), float(expected.abs().max())
    except Exception as error:  # RuntimeError of either; those of ONNX Runtime are not public
        reason = " ".join(str(error).split())
        raise UserError(f"{path.name} cannot take {height}x{width} images: {reason}") from error
    if not difference <= _AGREEMENT * scale:
        raise UserError(
            f"{path.name} differs from the trained encoder on {height}x{width} images by up to "
            f"{difference:.3g} (largest feature {scale:.3g}); try another opset"
        )
