"""Names of a bundle's files, and the content of preprocess.json."""

from collections.abc import Mapping
from typing import Any

FLOAT, INT8, ENCODER = "student.onnx", "student.int8.onnx", "encoder.onnx"
SCRIPT = "predict.py"
LABELS = "labels.txt"  # of a classifier
OF_A_LOADER = "loader"  # name of data that no recipe opens: they came from a program's DataLoader
FULL_RANGE = "full range weights: right only on CPUs with VNNI or ARM dot product"
# What int8 files of a flavour are, and are not.
FLAVOURS = {
    "tensorrt": (
        "made for TensorRT: symmetric int8, every zero point 0, biases float, Q and DQ where "
        "TensorRT fuses them; TensorRT itself was not run, and ONNX Runtime on a CPU computes the "
        "layers in float, slower than the float file"
    ),
}


def embeds(description: Mapping[str, Any]) -> bool:
    """Whether the files of a described student give embeddings (N, D), not logits (N, K)."""
    return not description["num_classes"]


def preprocess_content(
    preprocessing: Mapping[str, Any], *, raw_pixels: bool, any_size: bool = False
) -> dict[str, Any]:
    """The content of preprocess.json: the way from an RGB image to the input of the files.

    Args:
        preprocessing: `compress.data.Preprocessing.as_dict()`.
        raw_pixels: the files take uint8 (N, H, W, 3) and normalise inside.
        any_size: they take images of any size as they are, as those of a dense network do.
    """
    free = {"any_size": True} if any_size else {}
    return {
        **free,
        "format": 1,
        "input": "images",
        "dtype": "uint8" if raw_pixels else "float32",
        "layout": "NHWC" if raw_pixels else "NCHW",
        "color": "RGB",
        "image_size": preprocessing["image_size"],
        "resize": preprocessing["resize"],
        "interpolation": "bilinear",
        "antialias": True,
        "divide_by": 255.0,
        "mean": list(preprocessing["mean"]),
        "std": list(preprocessing["std"]),
        "normalise_in_graph": raw_pixels,
    }
