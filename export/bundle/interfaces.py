"""Inputs and outputs of each ONNX file of a bundle, and the way from an image to them, in words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from compress.storage.json_files import ClosedSchema

PIXELS = "logits of pixels"
MEANINGS = {
    "logits": (
        "one score per class, not normalised: softmax over axis 1 gives probabilities, argmax the "
        "class, which is a line of labels.txt, counted from 0"
    ),
    PIXELS: (
        "one score per class of every pixel of the image, not normalised: softmax over axis 1 "
        "gives probabilities, argmax each pixel's class, which is a line of labels.txt, counted "
        "from 0"
    ),
    "embedding": (
        "the embedding of the image, of no particular length; images are alike as their cosine is"
    ),
    "features": "the encoder's last feature map, before global pooling",
}
_OUTPUT_LAYOUTS = {2: "NK", 4: "NCHW"}


class InputInterface(ClosedSchema):
    """An input: `range` is the smallest and largest value of each channel, in the order of `color`.

    A dimension of `shape` is a number, or the name of one that may have any size.
    """

    name: str
    dtype: str
    shape: list[int | str]
    layout: str
    color: str
    values: str
    range: list[list[float]]


class OutputInterface(ClosedSchema):
    """An output; `shape` as that of an input."""

    name: str
    dtype: str
    shape: list[int | str]
    layout: str
    values: str


class FileInterface(ClosedSchema):
    """Inputs and outputs of one file."""

    inputs: list[InputInterface]
    outputs: list[OutputInterface]


def read_interface(path: Path, preprocess: Mapping[str, Any]) -> FileInterface:
    """Names, types and shapes as the file has them, with their meaning.

    Args:
        path: an ONNX file of a bundle.
        preprocess: the content of preprocess.json.
    """
    graph = onnx.load(path, load_external_data=False).graph
    return FileInterface(
        inputs=[InputInterface(**_value(v), **_input(v, preprocess)) for v in graph.input],
        outputs=[OutputInterface(**_value(v), **_output(v)) for v in graph.output],
    )


def preparation_words(preprocess: Mapping[str, Any]) -> str:
    """The way from an image file to the pixels that the network sees, as one sentence.

    Args:
        preprocess: the content of preprocess.json.
    """
    size, side = preprocess["image_size"], preprocess["resize"]
    words = "Decode to 8-bit RGB (orientation from EXIF is not applied)"
    if preprocess.get("any_size"):
        return f"{words}; the image keeps its own size, nothing is resized or cut."
    if not side:
        return f"{words}; the image must have {size} x {size} pixels, nothing is resized or cut."
    words += (
        f"; resize the shorter side to {side} pixels and the longer one to {side} * longer / "
        f"shorter, rounded down (bilinear with antialiasing, as Pillow's); cut the centre {size} x "
        f"{size} pixels, starting at (side - {size}) / 2 rounded to the nearest, halves to even"
    )
    if side < size:
        words += ", filled with zeros where the image ends"
    return f"{words}."


def _value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    shape = [d.dim_param or int(d.dim_value) for d in tensor.shape.dim]
    return {"name": value.name, "dtype": dtype, "shape": shape}


def _input(value: onnx.ValueInfoProto, preprocess: Mapping[str, Any]) -> dict[str, Any]:
    if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8:
        return {
            "layout": "NHWC",
            "color": "RGB",
            "values": "pixels; the file normalises them",
            "range": [[0.0, 255.0]] * 3,
        }
    mean, std, divisor = preprocess["mean"], preprocess["std"], preprocess["divide_by"]
    return {
        "layout": "NCHW",
        "color": "RGB",
        "values": f"(pixel / {divisor:g} - mean) / std, mean {mean}, std {std}",
        "range": [
            [round((end - m) / s, 6) for end in (0, 255 / divisor)]
            for m, s in zip(mean, std, strict=True)
        ],
    }


def _output(value: onnx.ValueInfoProto) -> dict[str, Any]:
    dimensions = len(value.type.tensor_type.shape.dim)
    layout = _OUTPUT_LAYOUTS.get(dimensions, "")
    meaning = PIXELS if value.name == "logits" and layout == "NCHW" else value.name
    return {
        "layout": "ND" if value.name == "embedding" else layout,
        "values": MEANINGS.get(meaning, ""),
    }
