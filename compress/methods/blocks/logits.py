"""Logits as several methods read them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from compress.methods.blocks.directions import fading
from compress.methods.contract import LossWeights, Needs
from compress.precision import in_float32

_SMALLEST_DEVIATION = 1e-7


@in_float32
def standardized(logits: Tensor) -> Tensor:
    """Each prediction's logits less their mean over the classes, over their standard deviation.

    Logit Standardization in Knowledge Distillation (Sun et al.; CVPR 2024): student and teacher
    then agree in the shape of their logits and not in the length. (z - mean) / (1e-7 + std), with
    the unbiased standard deviation, as in the authors' code. Predictions whose deviation is below
    1e-3, which are uniform up to that, fade out (`blocks.directions.fading`): there the code has a
    gradient of up to 1e7, as a classifier would get that begins with zeros.

    Args:
        logits: (N, K), or of pixels (N, K, h, w); K >= 2.

    Returns:
        The same shape, in float32 or wider; 0 where all logits of a prediction are equal.
    """
    deviation = logits.std(dim=1, keepdim=True)
    centred = logits - logits.mean(dim=1, keepdim=True)
    shares = fading(deviation, deviation.new_ones(()))
    return centred / (_SMALLEST_DEVIATION + deviation) * shares


def needs_of_standardized(
    needs: Needs, arguments: Mapping[str, Any], weights: LossWeights
) -> Needs:
    """The needs of a method, with the published weights of its `standardize: true` where given."""
    if not arguments.get("standardize", False):
        return needs
    return replace(needs, protocols=dict.fromkeys(needs.protocols, weights))
