"""student.int8.onnx: quantize, compare with the trained network, and drop if a limit is exceeded.

It is compared twice: with the integer kernels of this machine, and exactly as the file is written
(`exact` of `open_session`), so that no file passes only thanks to the CPU at hand.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.console.messages import log
from compress.data import evenly
from compress.errors import UserError
from compress.onnx.qdq import CALIBRATIONS
from compress.recipe.schema import Int8
from export.bundle.contents import FLAVOURS, FULL_RANGE, INT8
from export.bundle.int8_gate import Limits
from export.bundle.int8_search import quantize_with, search_int8
from export.bundle.parity import OutputParity
from export.bundle.request import BundleRequest, compare_file

# Of the split, run exactly: that takes several times as long as the kernels do.
_EXACT_IMAGES = 1000


@dataclass(frozen=True)
class Int8Outcome:
    """`values` about the file, or why it was `refused`, and what a `search` tried.

    All are None where no int8 file was wanted.
    """

    values: dict[str, Any] | None = None
    refused: str | None = None
    search: dict[str, Any] | None = None


def write_int8(request: BundleRequest, folder: Path, float_bytes: int) -> Int8Outcome:
    """Write the int8 file beside the float file, which has `float_bytes`, or leave it out."""
    settings, search = request.settings.int8, None
    if settings is None:
        return Int8Outcome()
    try:
        if settings.search:
            settings, search = search_int8(request, settings, folder, Limits.of(settings))
        return Int8Outcome(_quantize(request, settings, folder, float_bytes), None, search)
    except Exception as error:  # whatever it is, the float file is worth shipping
        (folder / INT8).unlink(missing_ok=True)
        # The folder that the bundle is made in has a random name and goes.
        reason = str(error).replace(f"{folder}/", "")
        if not isinstance(error, UserError):
            reason = f"it could not be made ({type(error).__name__}: {' '.join(reason.split())})"
        log(f"  {INT8}: left out of the bundle: {reason}")
        return Int8Outcome(None, reason, search)


def _quantize(
    request: BundleRequest, settings: Int8, folder: Path, float_bytes: int
) -> dict[str, Any]:
    path, data = folder / INT8, request.data
    info = quantize_with(request, settings, folder, path)
    # Where there is a validation split the test split decides nothing.
    images = data.validation or data.test
    gate = compare_file(request, path, images)
    few = images.subset(evenly(images, _EXACT_IMAGES)) if len(images) > _EXACT_IMAGES else images
    exact = compare_file(request, path, few, exact=True)
    comparisons = {"on this machine": gate, "computed exactly": exact}
    _require(comparisons, settings)
    remark = _remark(comparisons, settings)
    parity = gate if images is data.test else compare_file(request, path, data.test)
    share = info.size_bytes / float_bytes
    log(f"  {INT8}: {parity.int8_words()}, {share:.2f} of the size")
    if remark is not None:
        log(f"  {INT8}: {remark}")
    if settings.full_range:
        log(f"  {INT8}: {FULL_RANGE}")
    if settings.flavour in FLAVOURS:
        log(f"  {INT8}: {FLAVOURS[settings.flavour]}")
    return {
        **info.as_dict(),
        "flavour_note": FLAVOURS.get(settings.flavour),
        **parity.as_dict(),
        "drop_words": parity.drop_words(),
        "gate": {
            "split": "validation" if images is data.validation else "test",
            **gate.gate_values(),
            "exact": exact.gate_values(),
            "accepted": Limits.of(settings).accepted(gate),
            "remark": remark,
        },
    }


def _require(parities: dict[str, OutputParity], settings: Int8) -> None:
    """Refuse a file that exceeds a limit in any of the comparisons.

    Raises:
        UserError: the numbers and what to try.
    """
    limits = Limits.of(settings)
    clauses = {name: ", ".join(limits.list_exceeded(parity)) for name, parity in parities.items()}
    sentence = _sentence(parities, clauses)
    if sentence:
        narrower = "weights of 7 bits (full_range: false), " if settings.full_range else ""
        raise UserError(
            f"{sentence}; limits are keys of export.int8; try {narrower}"
            "more calibration images, "
            f"another calibration method ({', '.join(CALIBRATIONS)}), leaving out the first and "
            "last layers, or `int8: null` (--no-int8)"
        )


def _remark(parities: dict[str, OutputParity], settings: Int8) -> str | None:
    """A sentence on drops that the images cannot tell from the limit; None where there is none."""
    limits = Limits.of(settings)
    clauses = {name: limits.remark(parity) or "" for name, parity in parities.items()}
    return _sentence(parities, clauses) or None


def _sentence(parities: dict[str, OutputParity], clauses: dict[str, str]) -> str:
    """The clauses on the comparisons of these names; what is the same of several is said once."""
    names: dict[str, list[str]] = {}
    for name, clause in clauses.items():
        if clause:
            names.setdefault(f"{parities[name].images} images: {clause}", []).append(name)
    return "; ".join(f"{' and '.join(several)}, {rest}" for rest, several in names.items())
