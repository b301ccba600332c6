"""The networks that are compared, each from pixel values of the same images to its own taps."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from compress.model_files import Origin, load_student
from compress.taps import MapSpec, Tapped

EMBEDDING = "embedding"


@dataclass(frozen=True)
class Layers:
    """Of a batch: stage maps (N, C, H, W) from fine to coarse, the embedding (N, D)."""

    stages: list[Tensor]
    embedding: Tensor

    @property
    def every(self) -> list[Tensor]:
        """The stages, then the embedding."""
        return [*self.stages, self.embedding]


class ComparedNetwork:
    """A network of any origin in eval mode, with frozen parameters.

    Stages and embedding are those of the student's own architecture, as the transfer tasks read it;
    logits those of what ships, which a method may have given a projector and another classifier.
    """

    def __init__(self, label: str, origin: Origin, device: torch.device) -> None:
        """Build it on `device`.

        Raises:
            UserError: its files are damaged, or do not hold all weights of its encoder.
        """
        self.label = label
        self.origin = origin
        self.preprocessing = origin.preprocessing
        specs = origin.taps
        self.device = device
        deployed, plain = _build(origin)
        self._deployed = deployed.to(device).eval().requires_grad_(False)
        network = plain.to(device).eval().requires_grad_(False)
        # What a classifier that is not linear reads has no tap: its logits stand for it.
        self._embedding = "pooled" if specs.pooled_width else "logits"
        self._layers = Tapped(network, specs, ["stages", self._embedding])
        self._end = Tapped(network, specs, [self._embedding])
        self.stages: tuple[MapSpec, ...] = specs.stages
        self.classes = _classes(origin)

    @property
    def layer_names(self) -> list[str]:
        """Names of `Layers.every`."""
        return [*(stage.path for stage in self.stages), EMBEDDING]

    def describe(self) -> dict[str, Any]:
        """Plain values: architecture, digest of the weights, layers with (C, H, W)."""
        shapes = {stage.path: list(stage.shape) for stage in self.stages}
        return {**self.origin.describe(), "stages": shapes, "classes": self.classes}

    @torch.no_grad()
    def layers(self, pixels: Tensor) -> Layers:
        """Of pixel values (N, 3, S, S) from 0 to 1, see `prepare`."""
        taps = self._layers(self.prepare(pixels))
        return Layers(taps.tensors("stages"), taps.tensor(self._embedding))

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """(N, K) of the network that ships; there are none where `classes` is None."""
        logits: Tensor = self._deployed(self.prepare(pixels))
        return logits

    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings (N, D) of pixel values (N, 3, S, S) from 0 to 1, with gradient to them."""
        return self._end(self.prepare(pixels)).tensor(self._embedding)

    def prepare(self, pixels: Tensor) -> Tensor:
        """Resize pixel values (N, 3, S, S) to the network's own size and normalise them."""
        own = self.preprocessing
        size = own.image_size
        values = pixels.to(self.device)
        if values.shape[-1] != size:
            values = interpolate(values, (size, size), mode="bilinear", antialias=True)
        mean, std = (values.new_tensor(v).view(1, 3, 1, 1) for v in (own.mean, own.std))
        return (values - mean) / std


def _build(origin: Origin) -> tuple[nn.Module, nn.Module]:
    """The network that ships, and the plain one, which is the same unless a method changed it."""
    if origin.weights is None:
        return (network := origin.network()), network
    deployed = load_student(origin.weights.parent, origin.weights.stem)
    is_plain = deployed.description["method"] is None
    return deployed.network, deployed.network if is_plain else origin.network()


def _classes(origin: Origin) -> int | None:
    """Classes whose logits the network gives; None of one that gives an embedding alone."""
    specs = origin.taps
    if specs.output != "logits":
        return None
    # A file of weights alone may lack those of the classifier.
    heads = [f"{path}.weight" for path in specs.classifiers]
    is_whole = origin.weights is not None or {*heads} <= {*origin.read()}
    return specs.num_classes if is_whole else None
