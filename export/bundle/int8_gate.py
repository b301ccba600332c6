"""The limits of an int8 file against the trained network: agreement, difference and top-1.

Of a network that gives embeddings they are of cosines, of one that segments of pixels. A drop of
accuracy is judged with its standard error, see `judge_drop`.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from compress.recipe.schema import Int8
from export.bundle.parity import EmbeddingParity, OutputParity, Parity, PixelParity

Verdict = Literal["within", "undecided", "exceeded"]
# By so many standard errors a drop must exceed its limit to refuse a file.
STANDARD_ERRORS = 2.0


def judge_drop(drop: float, limit: float, standard_error: float) -> Verdict:
    """Judge a drop of accuracy by its limit and by what the images can tell.

    One image of 45 is 2.22 points, so that a few images cannot say whether a drop is above a limit
    of 1 or below it. The rule:

    * `within`: the drop is not above the limit.
    * `undecided`: it is, by at most 2 standard errors of the drop. The file is not refused for it,
      and a remark says so with the numbers. The limits of agreement and difference, which have no
      such leeway, still apply.
    * `exceeded`: it is above by more than that. The file is refused.

    The standard error is paired: trained network and file are judged on the same images, so that
    only those count of which one is right and the other wrong. For top-1 it comes from their
    number (`Parity.drop_standard_error`), for mean IoU from the jackknife over the images
    (`PixelParity`). All three numbers are in percentage points; a NaN exceeds.
    """
    # The margin is for the rounding of decimals.
    if drop <= limit + 1e-9:
        return "within"
    return "undecided" if drop <= limit + STANDARD_ERRORS * standard_error else "exceeded"


@dataclass(frozen=True)
class Int8Limits:
    """The most that an int8 file may lose.

    `max_top1_drop` is in percentage points and judged by `judge_drop`, `min_agreement_percent` the
    share of images that must get the trained network's class, `max_difference` that of a logit
    relative to the largest one.
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
        agreement = min(self.min_agreement_percent, 100 - slack)
        clauses = []
        if self._judge(parity, slack) == "exceeded":
            clauses.append(f"{_top1(parity)}, accepted is {self._drop(slack):g} (max_top1_drop)")
        # The margin is for the rounding of decimals.
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

    def remark(self, parity: Parity, slack_images: int = 0) -> str | None:
        """A clause on a drop that the images cannot tell from its limit, else None."""
        slack = 100 * slack_images / parity.images
        if self._judge(parity, slack) != "undecided":
            return None
        return _undecided(_top1(parity), self._drop(slack), "max_top1_drop", parity.images)

    def _judge(self, parity: Parity, slack: float) -> Verdict:
        return judge_drop(parity.top1_drop, self._drop(slack), parity.drop_standard_error)

    def _drop(self, slack: float) -> float:
        return max(self.max_top1_drop, slack)


def _top1(parity: Parity) -> str:
    return (
        f"int8 costs {parity.top1_drop:.2f} points of top-1 accuracy "
        f"({parity.torch_top1_percent:.2f} % float, {parity.onnx_top1_percent:.2f} % int8; "
        f"standard error {parity.drop_standard_error:.2g})"
    )


def _undecided(clause: str, limit: float, key: str, images: int) -> str:
    return (
        f"{clause}, which {images} image{'s' if images > 1 else ''} cannot tell from the accepted "
        f"{limit:g} ({key}): it is above by less than {STANDARD_ERRORS:g} standard errors; more "
        "images would decide"
    )


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

    `max_miou_drop` is in percentage points and judged by `judge_drop`, `min_agreement_percent` the
    share of the pixels with a class that must get the trained network's class. The largest
    difference of a logit is said, and limits nothing: it is that of one pixel of millions.
    """

    max_miou_drop: float = 1.0
    min_agreement_percent: float = 95.0

    def list_exceeded(self, parity: PixelParity) -> list[str]:
        """List a clause for each limit that is exceeded, naming its key; a NaN exceeds it."""
        clauses = []
        if self._judge(parity) == "exceeded":
            clauses.append(f"{_miou(parity)}, accepted is {self.max_miou_drop:g} (max_miou_drop)")
        if not parity.pixel_agreement_percent >= self.min_agreement_percent - 1e-9:
            clauses.append(
                f"{parity.pixel_agreement_percent:.2f} % of the pixels get the same class, "
                f"accepted is {self.min_agreement_percent:g} or more (min_agreement_percent)"
            )
        return clauses

    def remark(self, parity: PixelParity) -> str | None:
        """A clause on a drop that the images cannot tell from its limit, else None."""
        if self._judge(parity) != "undecided":
            return None
        return _undecided(_miou(parity), self.max_miou_drop, "max_miou_drop", parity.images)

    def _judge(self, parity: PixelParity) -> Verdict:
        return judge_drop(parity.miou_drop, self.max_miou_drop, parity.drop_standard_error)


def _miou(parity: PixelParity) -> str:
    return (
        f"int8 costs {parity.miou_drop:.2f} points of mean IoU "
        f"({parity.torch_miou_percent:.2f} % float, {parity.onnx_miou_percent:.2f} % int8; "
        f"standard error {parity.drop_standard_error:.2g})"
    )


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

    def remark(self, parity: OutputParity, slack_images: int = 0) -> str | None:
        """A clause on a drop that the images cannot tell from its limit, else None."""
        if isinstance(parity, PixelParity):
            return self.pixels.remark(parity)
        return self.classes.remark(parity, slack_images) if isinstance(parity, Parity) else None

    def accepted(self, parity: OutputParity) -> dict[str, Any]:
        """The limits of this kind of file, by their keys."""
        if isinstance(parity, PixelParity):
            return asdict(self.pixels)
        return asdict(self.cosines if isinstance(parity, EmbeddingParity) else self.classes)
