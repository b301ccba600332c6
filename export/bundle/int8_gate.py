"""The limits of an int8 file against the trained network: agreement, difference and top-1.

Of a network that gives embeddings they are of cosines, of one that segments of pixels.
"""

from dataclasses import asdict, dataclass
from typing import Any

from compress.recipe.schema import Int8
from export.bundle.parity import EmbeddingParity, OutputParity, Parity, PixelParity


@dataclass(frozen=True)
class Int8Limits:
    """The most that an int8 file may lose.

    `max_top1_drop` is in percentage points, `min_agreement_percent` the share of images that must
    get the trained network's class, `max_difference` that of a logit relative to the largest one.
    """

    max_top1_drop: float = 1.0
    min_agreement_percent: float = 95.0
    max_difference: float = 0.1

    def list_exceeded(self, parity: Parity, slack_images: int = 0) -> list[str]:
        """List a clause for each exceeded limit, naming its key; a NaN exceeds it.

        Args:
            slack_images: images that may go wrong however few there are.
        """
        slack = 100 * slack_images / parity.images
        drop = max(self.max_top1_drop, slack)
        agreement = min(self.min_agreement_percent, 100 - slack)
        clauses = []
        # The margins are for the rounding of decimals.
        if not parity.top1_drop <= drop + 1e-9:
            clauses.append(
                f"int8 costs {parity.top1_drop:.2f} points of top-1 accuracy "
                f"({parity.torch_top1_percent:.2f} % float, {parity.onnx_top1_percent:.2f} % "
                f"int8), accepted is {drop:g} (max_top1_drop)"
            )
        if not parity.top1_agreement_percent >= agreement - 1e-9:
            clauses.append(
                f"{parity.top1_agreement_percent:.2f} % of the images get the same class, "
                f"accepted is {agreement:g} or more (min_agreement_percent)"
            )
        if not parity.relative_difference <= self.max_difference:
            clauses.append(
                f"a logit is off by up to {parity.max_abs_difference:.3g}, "
                f"{parity.relative_difference:.3g} of the largest, accepted is "
                f"{self.max_difference:g} (max_difference)"
            )
        return clauses


@dataclass(frozen=True)
class CosineLimits:
    """The least cosines of an int8 file's embeddings: mean, and first percentile."""

    min_mean_cosine: float = 0.99
    min_low_cosine: float = 0.95

    def list_exceeded(self, parity: EmbeddingParity) -> list[str]:
        """List a clause for each limit that is not reached, naming its key; a NaN reaches none."""
        pairs = (
            ("the mean cosine", parity.mean_cosine, self.min_mean_cosine, "min_mean_cosine"),
            ("the lowest percent", parity.low_cosine, self.min_low_cosine, "min_low_cosine"),
        )
        return [
            f"{name} of int8 and float embeddings is {value:.4f}, accepted is {least:g} or more "
            f"({key})"
            for name, value, least, key in pairs
            if not value >= least - 1e-9
        ]


@dataclass(frozen=True)
class PixelLimits:
    """The most that an int8 file may lose that segments.

    `max_miou_drop` is in percentage points, `min_agreement_percent` the share of the pixels with a
    class that must get the trained network's class. The largest difference of a logit is said, and
    limits nothing: it is that of one pixel of millions.
    """

    max_miou_drop: float = 1.0
    min_agreement_percent: float = 95.0

    def list_exceeded(self, parity: PixelParity) -> list[str]:
        """List a clause for each limit that is exceeded, naming its key; a NaN exceeds it."""
        clauses = []
        if not parity.miou_drop <= self.max_miou_drop + 1e-9:
            clauses.append(
                f"int8 costs {parity.miou_drop:.2f} points of mean IoU "
                f"({parity.torch_miou_percent:.2f} % float, {parity.onnx_miou_percent:.2f} % "
                f"int8), accepted is {self.max_miou_drop:g} (max_miou_drop)"
            )
        if not parity.pixel_agreement_percent >= self.min_agreement_percent - 1e-9:
            clauses.append(
                f"{parity.pixel_agreement_percent:.2f} % of the pixels get the same class, "
                f"accepted is {self.min_agreement_percent:g} or more (min_agreement_percent)"
            )
        return clauses


@dataclass(frozen=True)
class Limits:
    """The limits of each kind of file."""

    classes: Int8Limits = Int8Limits()
    cosines: CosineLimits = CosineLimits()
    pixels: PixelLimits = PixelLimits()

    @classmethod
    def of(cls, settings: Int8) -> "Limits":
        """Those of a recipe."""
        return cls(
            Int8Limits(
                settings.max_top1_drop, settings.min_agreement_percent, settings.max_difference
            ),
            CosineLimits(settings.min_mean_cosine, settings.min_low_cosine),
            PixelLimits(settings.max_miou_drop, settings.min_agreement_percent),
        )

    def list_exceeded(self, parity: OutputParity, slack_images: int = 0) -> list[str]:
        """A clause for each limit that is exceeded, see the limits of each kind."""
        if isinstance(parity, EmbeddingParity):
            return self.cosines.list_exceeded(parity)
        if isinstance(parity, PixelParity):
            return self.pixels.list_exceeded(parity)
        assert isinstance(parity, Parity)
        return self.classes.list_exceeded(parity, slack_images)

    def accepted(self, parity: OutputParity) -> dict[str, Any]:
        """The limits of this kind of file, by their keys."""
        if isinstance(parity, PixelParity):
            return asdict(self.pixels)
        return asdict(self.cosines if isinstance(parity, EmbeddingParity) else self.classes)
