"""Counting the parameters of a segmentation network by its architecture, without training."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from compress import models
from compress.data import Preprocessing
from compress.errors import UserError
from compress.model_files.artifacts import cut_encoder
from compress.models.segmentation.deep_stem import has_imagenet_stem
from compress.taps.discovery import discover
from eval.segmentation.backbone import auxiliary_map
from eval.segmentation.deep_stem import with_deep_stem
from eval.segmentation.model import Segmenter
from eval.segmentation.views import at_least

_SIDES = {True: 32, False: 224}  # of our CIFAR networks, of all others
_STEMS = ("deep", "plain")


def describe_architecture(name: str, classes: int, stem: str | None = None) -> dict[str, Any]:
    """Parameters of the whole network (auxiliary head included) and of its parts.

    Args:
        name: an architecture as in a recipe; without prefix ours, or else torchvision's.
        stem: deep or plain; None: deep for ImageNet-style ResNets, as the papers have it.
    """
    at_least("classes", classes, 1)
    bare = ":" not in name and name not in models.MODELS
    architecture = f"torchvision:{name}" if bare else name
    network = models.build(architecture, num_classes=classes).eval()
    side = _SIDES[architecture in models.MODELS]
    preprocessing = Preprocessing(side, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    taps = discover(network, preprocessing.input_shape, architecture)
    encoder = cut_encoder(network, taps, preprocessing, {}, architecture)
    stem = stem or ("deep" if has_imagenet_stem(network) else "plain")
    if stem == "deep":
        if taps.last_map is None:
            raise UserError(f"{architecture} has no last map.")
        encoder = with_deep_stem(network, encoder, taps.last_map, seed=0)
    segmenter = Segmenter(encoder, classes=classes, seed=0, auxiliary=auxiliary_map(taps))
    parts = {
        part: sum(p.numel() for p in module.parameters())
        for part, module in segmenter.named_children()
    }
    return {
        "architecture": architecture,
        "classes": classes,
        "stem": stem,
        "output_stride": segmenter.trunk.output_stride,
        "width": segmenter.width,
        "parameters": sum(parts.values()),
        "parameters_by_part": parts,
    }


def main(arguments: Sequence[str]) -> int:
    """Print the description of `--describe NAME --classes K` as JSON."""
    parser = argparse.ArgumentParser(prog="python -m eval.segmentation")
    parser.add_argument("--describe", metavar="NAME", required=True)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--stem", choices=_STEMS)
    options = parser.parse_args(arguments)
    try:
        print(
            json.dumps(
                describe_architecture(options.describe, options.classes, options.stem), indent=2
            )
        )
    except UserError as error:
        parser.exit(2, f"{error}\n")
    return 0
