"""Knowledge quantification: which pixels a representation depends on, and how steadily.

DLKD (Ding et al., TNNLS 2022, section IV, Tables XI and XII) after Cheng et al., "Explaining
Knowledge Distillation by Quantifying the Knowledge" (CVPR 2020), and Guan et al., "Towards a Deep
and Unified Understanding of Deep Neural Models in NLP" (ICML 2019).

Gaussian noise of deviation s[i] at pixel i is made as large as the representation z = f(x) allows:

    min over s of  E |f(x + s e) - f(x)|^2 / V  -  rate * mean_i log s[i],    e ~ N(0, 1)

    H[i] = log s[i] + log(2 pi e) / 2        nats: what f discards of pixel i
    average = mean_i H[i]                    Table XI, lower: more of the image is used
    concepts = {i : H[i] < average}          the pixels that f depends on most
    IoU = mean over images of |A and B| / |A or B|, A and B the concepts of two augmented views, on
          the pixels that both views show    Table XII, higher: steadier

No masks of objects are needed: Cheng et al. count concepts on foreground and background, which
asks for annotated objects; DLKD's definitions above replace them, and these are what is computed.
Two concept sets that each hold half of the pixels at random have an IoU of 1/3.

Chosen where DLKD's text is silent:
* f is the embedding, which the classifier reads (DLKD's z is the penultimate layer).
* x and s are in pixel values from 0 to 1, before normalisation, so that networks with different
  preprocessing are compared in one unit. A pixel's three channels share their s, as the formula's i
  counts pixels and as in Cheng's released code. s lies between 0 and 1, the range of a pixel: there
  is no optimum at pixels that f ignores.
* V is the variance of z over images, summed over its numbers, as Guan et al. divide by the variance
  of the features; with one number for all of them, the result does not change with a rotation or
  scale of z. (Cheng's released code divides by the effect of noise of a fixed size instead, which
  hides how sensitive a network is.) rate is 0.1, that of Guan's released code. By both, noise moves
  z by rate / 2 = 5 % of its variance at the optimum.
* s[i] = sigmoid(r[i]) from s = 0.1 for every pixel, Adam with learning rate 0.1, a draw of noise
  for each step; log s is the mean over the last three quarters of them, which averages the draws
  out (Guan's code keeps the s of the one draw with the least loss). What is left of them keeps the
  IoU below 1 even of a view with itself: that number is given, too.
* Images above 32 pixels have 32 x 32 values of s, each for a square of pixels (Cheng: 16 x 16 on
  224): optimising each single pixel would only cost more steps.
* Views are crops after padding by an eighth of the side (4 of 32) and random flips, CIFAR's
  augmentation.

Absolute values depend on all of this and cannot be laid beside the papers'; those of several
networks from one run can be compared.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_FIRST_DEVIATION = 0.1
_LEARNING_RATE = 0.1
_LARGEST_GRID = 32
_PADDING = 8  # a view is padded by this part of its side
_HALF_LOG_2_PI_E = 0.5 * math.log(2 * math.pi * math.e)

Embedding = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class View:
    """Crops (N, 3, S, S) of images of the same size, and where each of them lies.

    `tops` and `lefts` (N,) count from the corner of the padded image; `flips` (N,) says which crops
    are mirrored.
    """

    pixels: Tensor
    tops: Tensor
    lefts: Tensor
    flips: Tensor

    def place(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (N, S, S) of the crops at the places of the images' pixels, and which these show."""
        side = maps.shape[-1]
        padding = side // _PADDING
        placed, visible = torch.zeros_like(maps), torch.zeros_like(maps, dtype=torch.bool)
        for i, (top, left, flip) in enumerate(
            zip(self.tops.tolist(), self.lefts.tolist(), self.flips.tolist(), strict=True)
        ):
            canvas = maps.new_zeros(side + 2 * padding, side + 2 * padding)
            covered = torch.zeros_like(canvas, dtype=torch.bool)
            own = maps[i].flip(-1) if flip else maps[i]
            canvas[top : top + side, left : left + side] = own
            covered[top : top + side, left : left + side] = True
            inner = slice(padding, padding + side)
            placed[i], visible[i] = canvas[inner, inner], covered[inner, inner]
        return placed, visible


def random_view(pixels: Tensor, draws: torch.Generator) -> View:
    """A random crop of each of pixels (N, 3, S, S) after padding with zeros, maybe mirrored."""
    count, side = len(pixels), pixels.shape[-1]
    padding = side // _PADDING
    padded = functional.pad(pixels, (padding,) * 4)
    tops, lefts = (torch.randint(2 * padding + 1, (count,), generator=draws) for _ in range(2))
    flips = torch.rand(count, generator=draws) < 0.5
    crops = [
        padded[i, :, top : top + side, left : left + side]
        for i, (top, left) in enumerate(zip(tops.tolist(), lefts.tolist(), strict=True))
    ]
    mirrored = [c.flip(-1) if f else c for c, f in zip(crops, flips.tolist(), strict=True)]
    return View(torch.stack(mirrored), tops, lefts, flips)


def pixel_entropy(
    embed: Embedding,
    pixels: Tensor,
    *,
    variance: float,
    rate: float,
    steps: int,
    draws: torch.Generator,
) -> Tensor:
    """Entropy (N, S, S) in nats of every pixel of images (N, 3, S, S) with values from 0 to 1.

    Args:
        embed: from such images to embeddings (N, D), with gradient; each image for itself.
        variance: of the embeddings over images, summed over their D numbers.
        draws: of the noise, on the CPU.
    """
    count, _, side, _ = pixels.shape
    grid = min(side, _LARGEST_GRID)
    first = math.log(_FIRST_DEVIATION / (1 - _FIRST_DEVIATION))
    logits = torch.full((count, 1, grid, grid), first, device=pixels.device, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=_LEARNING_RATE)
    with torch.no_grad():
        clean = embed(pixels)
    kept = torch.zeros_like(logits, requires_grad=False)
    averaged = steps - steps // 4
    for step in range(steps):
        noise = torch.randn(pixels.shape, generator=draws).to(pixels.device)
        deviation = functional.interpolate(logits.sigmoid(), (side, side), mode="nearest")
        moved = (embed(pixels + deviation * noise) - clean).square().sum(1) / variance
        # Summed over the images, so that none changes the step of another.
        loss = (moved - rate * functional.logsigmoid(logits).mean((1, 2, 3))).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step >= steps - averaged:
            kept += functional.logsigmoid(logits.detach()) / averaged
    entropy = functional.interpolate(kept, (side, side), mode="nearest") + _HALF_LOG_2_PI_E
    return entropy[:, 0]


def concepts(entropy: Tensor) -> Tensor:
    """Which pixels (N, S, S) have less entropy than their image's average."""
    return entropy < entropy.mean((1, 2), keepdim=True)


def concept_iou(first: Tensor, second: Tensor, visible: Tensor | None = None) -> float | None:
    """Mean over images of the intersection over union of two sets of pixels (N, S, S), 0 to 1.

    Args:
        visible: the pixels (N, S, S) that count; by default all.

    Returns:
        None where both sets of every image are empty; other such images are left out.
    """
    shown = torch.ones_like(first) if visible is None else visible
    both, either = ((m & shown).sum((1, 2)) for m in (first & second, first | second))
    counted = either > 0
    if not counted.any():
        return None
    return float((both[counted] / either[counted]).mean())
