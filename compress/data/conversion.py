"""From a batch as one network reads it to what another network reads of the same crops."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from compress.data.images import Preprocessing


@dataclass(frozen=True)
class Conversion:
    """Normalised images (N, 3, S, S) of `source` -> (N, 3, T, T) of `target`, see `conversion`."""

    source: Preprocessing
    target: Preprocessing

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Convert a batch; it is not changed itself."""
        size = self.target.image_size
        if self.source.image_size != size:
            images = interpolate(images, (size, size), mode="bilinear", antialias=True)
        scale, shift = _columns(self.source, self.target, images.device, images.dtype)
        return images * scale + shift

    def as_words(self) -> str:
        """The conversion in words, to complete "images are"."""
        resized = f"resized from {self.source.image_size} to {self.target.image_size} pixels, "
        same_size = self.source.image_size == self.target.image_size
        mean, std = (
            ", ".join(f"{v:g}" for v in values) for values in (self.target.mean, self.target.std)
        )
        return f"{'' if same_size else resized}normalised by mean {mean} and std {std}"


def conversion(source: Preprocessing, target: Preprocessing) -> Conversion | None:
    """Conversion of images prepared as `source` says for a network of `target`.

    They are resized (bilinear, antialiased) where the sizes differ, and normalised anew. The crop,
    its flip and whatever else was done to the pixels stay, and what detail the size of `source` has
    lost is lost. None where the two prepare images alike.
    """
    own, other = ((p.image_size, p.mean, p.std) for p in (source, target))
    return None if own == other else Conversion(source, target)


@lru_cache
def _columns(
    source: Preprocessing, target: Preprocessing, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Factor and summand of each channel; made once, since a new tensor would make a step wait."""
    pairs = zip(source.mean, source.std, target.mean, target.std, strict=True)
    columns = [(s / other_s, (m - other_m) / other_s) for m, s, other_m, other_s in pairs]
    scale, shift = torch.tensor(columns, device=device, dtype=dtype).t()
    return scale.view(1, 3, 1, 1), shift.view(1, 3, 1, 1)
