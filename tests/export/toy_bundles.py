"""Bundles made by hand, with no torch: a network that names the mean colour of a picture."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from export.bundle import predict

SIZE = 9
LABELS = ("red", "green", "blue", "grey")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
SCRIPT = Path(predict.__file__)
# Mean normalised colour (3,) -> logits (4,).
WEIGHTS = np.array([[4, -1, -1, 0.5], [-1, 4, -1, 0.5], [-1, -1, 4, 0.5]], np.float32)


def model(
    *, raw: bool, weights: NDArray[np.floating[Any]] = WEIGHTS, opset: int = 18
) -> onnx.ModelProto:
    """Mean over pixels, then a matrix product; with `raw` of uint8 (N, H, W, 3)."""
    shape: list[Any] = ["batch", SIZE, SIZE, 3] if raw else ["batch", 3, SIZE, SIZE]
    tensors = {
        "weights": np.asarray(weights, np.float32),
        "scale": np.array([1 / (255 * s) for s in STD], np.float32),
        "shift": np.array([-m / s for m, s in zip(MEAN, STD, strict=True)], np.float32),
        "pixels": np.array([1, 2] if raw else [2, 3], np.int64),
    }
    nodes = [helper.make_node("ReduceMean", ["given", "pixels"], ["mean"], keepdims=0)]
    if raw:
        nodes.insert(0, helper.make_node("Cast", ["images"], ["given"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", ["mean", "scale"], ["scaled"]))
        nodes.append(helper.make_node("Add", ["scaled", "shift"], ["colour"]))
    else:
        nodes.insert(0, helper.make_node("Identity", ["images"], ["given"]))
        nodes.append(helper.make_node("Identity", ["mean"], ["colour"]))
    nodes.append(helper.make_node("MatMul", ["colour", "weights"], ["logits"]))
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("images", TensorProto.UINT8 if raw else 1, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(t, name) for name, t in tensors.items() if name in used],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 8
    return made


def make(
    folder: Path,
    *,
    raw: bool = False,
    weights: NDArray[np.floating[Any]] = WEIGHTS,
    resize: int = 0,
) -> Path:
    """A sealed bundle with the float file alone."""
    folder.mkdir()
    (folder / "student.onnx").write_bytes(model(raw=raw, weights=weights).SerializeToString())
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    content = {
        "format": 1,
        "input": "images",
        "dtype": "uint8" if raw else "float32",
        "layout": "NHWC" if raw else "NCHW",
        "color": "RGB",
        "image_size": SIZE,
        "resize": resize,
        "interpolation": "bilinear",
        "divide_by": 255.0,
        "mean": MEAN,
        "std": STD,
        "normalise_in_graph": raw,
    }
    (folder / "preprocess.json").write_text(json.dumps(content))
    shutil.copyfile(SCRIPT, folder / "predict.py")
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    """Write the manifest of what is there now."""
    files = {
        path.name: {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.iterdir())
        if path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))


def picture(path: Path, size: tuple[int, int] = (SIZE, SIZE), seed: int = 0) -> Path:
    """Random colours, (width, height), in the format that the suffix names."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    # A tint, so that pictures of different seeds are not all the same grey.
    tint = np.random.default_rng(seed + 100).uniform(0.3, 1, 3)
    Image.fromarray((pixels * tint).astype(np.uint8)).save(path)
    return path


def loaded(folder: Path, *, strict: bool = False) -> predict.Predictor:
    """The bundle's float network on one thread."""
    return predict.Predictor(predict.load_bundle(folder), int8=False, threads=1, strict=strict)


def told(
    capsys: pytest.CaptureFixture[str], arguments: list[Any], code: int = 0
) -> list[dict[str, Any]]:
    """What the script prints with --json."""
    assert predict.main([*map(str, arguments), "--json"]) == code
    records: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return records


def softmax(file: Path) -> NDArray[np.float64]:
    """The probabilities of a picture, from the formula, in float64."""
    with Image.open(file) as image:
        colour = np.asarray(image, np.float64).mean((0, 1)) / 255
    logits = (colour - MEAN) / STD @ WEIGHTS.astype(np.float64)
    shares = np.exp(logits - logits.max())
    result: NDArray[np.float64] = shares / shares.sum()
    return result
