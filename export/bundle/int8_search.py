"""`int8: {search: true}`: calibration method and float layers by measured agreement.

Every candidate is a setting that a recipe can name, so that what was chosen can be had again
without a search. First come the calibration methods, the recipe's own first. Where the best of them
is not good enough, the network is cut into segments of neighbouring layers; each is left float in
turn, and the one or two that bring the logits nearest to the trained network's are candidates, too:
with the best method, or with each where none is within the gate's limits. That is a fixed number of
quantizations, at most 3 x `len(CALIBRATIONS)` + `_SEGMENTS`.

The judges are images of the validation split, or training images that nothing was calibrated on;
the test split decides nothing. All is computed exactly, as the file is written, so that the choice
does not depend on the CPU's integer kernels.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch

from compress.console.messages import log
from compress.data import Images, evenly
from compress.errors import UserError
from compress.onnx.qdq import CALIBRATIONS
from compress.onnx.quantize import QuantizationInfo, quantize_onnx
from compress.recipe.schema import Int8
from export.bundle.contents import FLOAT
from export.bundle.int8_gate import Limits
from export.bundle.parity import OutputParity
from export.bundle.request import BundleRequest, calibration_batches, compare_file

_JUDGES, _FEW_JUDGES = 1000, 200  # images, the latter for segments
_SEGMENTS = 8
_ENOUGH = 99.5  # percent of the images with the same class: no layer has to stay float
_PRICE = 0.1  # percent of the images that a float layer must win
_TRIAL = "trial.onnx"


@dataclass(frozen=True)
class Trial:
    """A candidate's settings and what it did on the judges; `exceeded` are limits of the gate."""

    settings: Int8
    info: QuantizationInfo
    parity: OutputParity
    exceeded: Sequence[str]

    @property
    def score(self) -> tuple[bool, float, float]:
        """Larger is better: within the limits, agreement less the price of float layers, error."""
        float_layers = self.info.layers - self.info.quantized_layers
        agreement = self.parity.agreement_percent - _PRICE * float_layers
        return not self.exceeded, round(agreement, 9), -self.parity.mean_abs_difference

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "calibration": self.settings.calibration,
            "leave_out": list(self.settings.leave_out),
            "quantized_layers": self.info.quantized_layers,
            **{k: v for k, v in self.parity.gate_values().items() if k != "images"},
            "mean_abs_difference": self.parity.mean_abs_difference,
            "within_limits": not self.exceeded,
        }


@dataclass(frozen=True)
class _Search:
    """Candidates of one student, judged; works in `folder`, which holds the float file."""

    request: BundleRequest
    folder: Path
    judges: Images
    limits: Limits

    def judge(self, settings: Int8, most: int = _JUDGES) -> Trial:
        """Quantize as the settings say, and compare on up to `most` of the judges."""
        path = self.folder / _TRIAL
        info = quantize_with(self.request, settings, self.folder, path)
        images = self.judges.subset(evenly(self.judges, most))
        parity = compare_file(self.request, path, images, exact=True)
        return Trial(settings, info, parity, self.limits.list_exceeded(parity))

    def methods(self, settings: Int8) -> list[Trial]:
        """A trial of each calibration method that works on this network, the settings' first.

        Raises:
            UserError: the settings' own does not work.
        """
        trials = [_logged(self.judge(settings))]
        for name in CALIBRATIONS:
            if name != settings.calibration:
                try:
                    other = settings.model_copy(update={"calibration": name})
                    trials.append(_logged(self.judge(other)))
                except UserError as error:
                    log(f"  int8 search: {name}: {error}")
        return trials

    def float_layers(self, base: Trial, others: Sequence[Trial]) -> list[Trial]:
        """Trials with the one and the two segments left float that bring most to `base`.

        Where it exceeds a limit, so do the others of which it is the best; which of them comes
        within the limits by float layers cannot be told from it, and each is tried.
        """
        count = min(_SEGMENTS, base.info.layers)
        edges = [1 + i * base.info.layers // count for i in range(count + 1)]
        errors: dict[tuple[int, ...], float] = {}
        for segment in (tuple(range(*pair)) for pair in pairwise(edges)):
            # Without what is in this segment, nothing may be left to quantize.
            with contextlib.suppress(UserError):
                trial = self.judge(_leaving(base.settings, segment), _FEW_JUDGES)
                errors[segment] = trial.parity.mean_abs_difference
        ranked = sorted(errors, key=lambda segment: (errors[segment], segment))
        left = [sorted(chain(*ranked[:n])) for n in (1, 2) if n < count and n <= len(ranked)]
        bases = others if base.exceeded else [base]
        return [
            _logged(self.judge(_leaving(one.settings, layers))) for one in bases for layers in left
        ]


def search_int8(
    request: BundleRequest, settings: Int8, folder: Path, limits: Limits
) -> tuple[Int8, dict[str, Any]]:
    """Choose calibration and float layers; works in `folder`, which holds the float file.

    Returns:
        The settings with the chosen ones in them, and `split` and number of `images` judged on,
        the `trials` with their numbers, and the index `chosen` of one of them.

    Raises:
        UserError: the network cannot be quantized with the recipe's own settings.
    """
    split, judges = _judges(request, settings)
    search = _Search(request, folder, judges, limits)
    try:
        trials = search.methods(settings)
        best = max(trials, key=lambda trial: trial.score)
        if best.exceeded or best.parity.agreement_percent < _ENOUGH:
            trials += search.float_layers(best, trials)
    finally:
        (folder / _TRIAL).unlink(missing_ok=True)
    chosen = max(range(len(trials)), key=lambda i: (trials[i].score, -i))  # the first of equals
    return trials[chosen].settings, {
        "split": split,
        "images": trials[chosen].parity.images,
        "trials": [trial.as_dict() for trial in trials],
        "chosen": chosen,
    }


def quantize_with(
    request: BundleRequest, settings: Int8, folder: Path, target: Path
) -> QuantizationInfo:
    """Quantize the bundle's float file as the settings say."""
    return quantize_onnx(
        folder / FLOAT,
        target,
        calibration_batches(request, settings.calibration_images),
        method=settings.calibration,
        leave_out=settings.leave_out,
        full_range=settings.full_range,
        flavour=settings.flavour,
    )


def _judges(request: BundleRequest, settings: Int8) -> tuple[str, Images]:
    """Name of the split, and its images; of training images those not calibrated on, if any."""
    validation, train = request.data.validation, request.data.train
    if validation is not None:
        return "validation", validation
    others = torch.ones(len(train), dtype=torch.bool)
    others[evenly(train, settings.calibration_images)] = False
    return "training", train.subset(others.nonzero().flatten()) if others.any() else train


def _leaving(settings: Int8, layers: Sequence[int]) -> Int8:
    kept = [place for place in settings.leave_out if place not in layers]
    return settings.model_copy(update={"leave_out": [*kept, *layers]})


def _logged(trial: Trial) -> Trial:
    """Log a candidate, and return it."""
    parity, left = trial.parity, ", ".join(map(str, trial.settings.leave_out))
    log(
        f"  int8 search: {trial.settings.calibration}{f', float layers {left}' if left else ''}: "
        f"{parity.search_words()}"
    )
    return trial
