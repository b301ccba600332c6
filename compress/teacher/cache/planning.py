"""The size and the expected savings of a teacher cache, and reasons why it cannot serve."""

import math
from collections.abc import Mapping, Sequence

import torch

from compress.taps import KINDS, TapSpecs
from compress.teacher.cache.rows import images_kept, row_bytes

STORED = ("logits", "pooled")  # maps are too large
_MOST_VIEWS = 1 << 16  # of an image with more views hardly any is ever met twice


def expected_hit_share(epochs: int, views: int, earlier: int = 0) -> float:
    """Expected share of `epochs` draws of an image's view that meet one that is stored.

    `earlier` independent draws were stored before: 0 is a cold run, with
    1 - views (1 - (1 - 1 / views)^epochs) / epochs.
    """
    stay = math.log1p(-1 / views) if views > 1 else -math.inf

    def distinct(draws: int) -> float:
        return -views * math.expm1(draws * stay) if draws else 0.0

    return 1 - (distinct(earlier + epochs) - distinct(earlier)) / epochs


def planning_note(
    images: int,
    views: int,
    widths: Mapping[str, int],
    dtype: torch.dtype,
    max_bytes: int,
    draws: int,
) -> str:
    """Say what a cache will take and save; `draws` views of each image: epochs x views per step."""
    image = views * row_bytes(widths, dtype)
    kept = images_kept(images, views, widths, dtype, max_bytes)
    cold, other = (
        100 * expected_hit_share(draws, views, earlier) * kept / images for earlier in (0, draws)
    )
    limit = f"; {kept:,} images ({_bytes(kept * image)}) are kept" if kept < images else ""
    return (
        f"teacher cache: up to {_bytes(images * image)} for {images:,} images x {views} views"
        f"{limit}; a cold run of {draws} views per image is expected to find {cold:.1f} % of its "
        f"targets there, a warm one {100 * kept / images:.1f} % with the same data.seed and "
        f"{other:.1f} % with another"
    )


def obstacle(
    wanted: Sequence[str], specs: TapSpecs, augmentations: Sequence[str], images: int, views: int
) -> str | None:
    """Why a cache cannot serve a method, in one sentence; None where it can.

    Args:
        wanted: the teacher's taps that are read; `specs` says how large they are.
        augmentations: the names of those of the views that the teacher sees.
        views: distinct views of an image: `data.views`, or those of the augmentation.
    """
    if not wanted:
        return "no teacher cache: the method reads no teacher"
    for kind in wanted:
        if kind not in STORED:
            return (
                f"no teacher cache: the method reads the teacher's '{kind}'"
                f"{_size(kind, specs, images, views)}; only logits and pooled vectors are stored"
            )
    if views > _MOST_VIEWS:
        return (
            f"no teacher cache: the views of augmentation {augmentations[0]} never repeat; "
            "limit those of an image with data.views"
        )
    return None


def _size(kind: str, specs: TapSpecs, images: int, views: int) -> str:
    spec = specs.of(kind) if kind in KINDS else None
    specs_of_kind = spec if isinstance(spec, tuple) else (spec,)
    numbers = sum(math.prod(one.shape) for one in specs_of_kind if one is not None)
    if not numbers:
        return ""
    if views > _MOST_VIEWS or not images:
        return f", {numbers:,} numbers a view"
    return f", {_bytes(numbers * 4 * images * views)} for {images:,} images x {views} views"


def _bytes(count: int) -> str:
    """`3.34 GB`, `61.9 MB`."""
    if count < 0.995e9:  # which two decimals of a GB would round up
        return f"{count / 1e6:,.1f} MB"
    return f"{count / 1e9:,.{0 if count >= 1e11 else 2}f} GB"
