"""Preprocessing of the images that a network learned from, as its file or publisher says."""

import importlib
from pathlib import Path

import torchvision

from compress.data.images import Preprocessing
from compress.model_files.artifacts import is_described, load_description
from compress.model_files.weights import published_weights


def own_preprocessing(
    model: str | None, checkpoint: str | None, weights: str | None
) -> Preprocessing | None:
    """The preprocessing of a teacher's own; None where nobody says.

    That of the description beside a checkpoint, of the weights that torchvision publishes under a
    name, or of timm's model.

    Args:
        model: such as torchvision:resnet18, None where the checkpoint names it.
        checkpoint: a file of weights.
        weights: a file, or a name under which weights are published.
    """
    path = Path(checkpoint or weights or "")
    if path.is_file() and is_described(path):
        described = load_description(path.parent, path.stem)
        return Preprocessing.from_dict(described["preprocessing"])
    library, _, name = (model or "").partition(":")
    if weights in published_weights(model or ""):
        transforms = torchvision.models.get_model_weights(name)[weights].transforms()
        size, resize = transforms.crop_size[0], transforms.resize_size[0]
        return Preprocessing(size, tuple(transforms.mean), tuple(transforms.std), resize)
    if library == "timm":
        known = importlib.import_module("timm.models").get_pretrained_cfg(name)
        if known is not None:
            size = known.input_size[-1]
            resize = round(size / known.crop_pct)
            return Preprocessing(size, tuple(known.mean), tuple(known.std), resize)
    return None
