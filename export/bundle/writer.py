"""The product: one folder that runs anywhere and proves that it is the trained network.

student.onnx  student.int8.onnx  encoder.onnx  student.safetensors + student.json  labels.txt
preprocess.json  predict.py  MODEL_CARD.md  manifest.json (SHA-256 of every other file)
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from numpy.typing import NDArray

from compress.console.messages import bar, log
from compress.data import Dataset, Images, evaluation_batches, evenly
from compress.environment import environment
from compress.errors import UserError
from compress.model_files.artifacts import Student, load_encoder, save
from compress.models.folding import fold_batchnorm
from compress.onnx.files import open_session
from compress.onnx.quantize import quantize_onnx, require_accuracy
from compress.recipe.schema import Export, Latency
from compress.storage.files import write_json, write_text
from export.bundle import predict
from export.bundle.card import model_card
from export.bundle.layout import ENCODER, FLOAT, INT8, preprocess_content
from export.bundle.manifest import write_manifest
from export.bundle.parity import Parity, Taken, compare, pixels_of
from export.bundle.timing import ORT, ORT_INT8, time_runtimes
from export.onnx import Exported, export_encoder, export_onnx

_BATCH = 64
_CPU = torch.device("cpu")
# Hidden folders in which a bundle is made; what a kill leaves of one may be deleted.
UNFINISHED = ".bundle-"
# Operators that move numbers and compute nothing.
_MOVING = {"Concat", "Gather", "Reshape", "Slice", "Split", "Transpose"}


@dataclass(frozen=True)
class Request:
    """What is to be bundled.

    `data_section` is the recipe's, without root and with the seed that subsets are drawn by;
    `latency` None leaves out timing; `costs` are the student's columns of `account`, if it ran;
    `found` and `teachers` are what the distill and teacher stages found.
    """

    name: str
    student: Student
    data: Dataset
    data_section: Mapping[str, Any]
    settings: Export
    latency: Latency | None = None
    costs: Mapping[str, Any] | None = None
    found: Mapping[str, Any] = field(default_factory=dict)
    teachers: Sequence[Mapping[str, Any]] = ()


def write_bundle(request: Request, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the bundle to `folder`, which must not exist; all of it or nothing.

    Returns:
        What was found: reproducible values (sizes, parity, accuracy), and what was timed.

    Raises:
        UserError: the student cannot be exported, or a file differs too much from it.
    """
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=UNFINISHED))
    try:
        partial.chmod(0o755)
        values, measured = _fill(request, partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return values, measured


def _fill(request: Request, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    student, settings = request.student, request.settings
    described = student.description
    save(folder, "student", student.network, described)
    write_text(folder / "labels.txt", "".join(f"{n}\n" for n in _labels(described)))
    content = preprocess_content(described["preprocessing"], raw_pixels=settings.raw_pixels)
    write_json(folder / "preprocess.json", content)
    shutil.copyfile(predict.__file__, folder / "predict.py")
    written, parity = _float(request, folder)
    int8 = _int8(request, folder, written) if settings.int8 is not None else None
    encoder = _encoder(described, folder, settings)
    measured = _timed(request, folder)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    facts = {
        "name": request.name,
        "license": settings.license,
        "student": described,
        "data": request.data_section,
        "parity": parity.as_dict(),
        "int8": int8,
        "files": {k: v for k, v in sizes.items() if k.endswith((".onnx", ".data", ".safetensors"))},
        "latency": measured or None,
        "costs": request.costs,
        "found": request.found,
        "teachers": request.teachers,
        "machine": environment(_CPU),
    }
    write_text(folder / "MODEL_CARD.md", model_card(facts))
    write_manifest(
        folder,
        student=request.name,
        fingerprint=described["fingerprint"],
        data=request.data_section,
        opset=settings.opset,
    )
    values = {
        "student": request.name,
        "opset": settings.opset,
        "raw_pixels": settings.raw_pixels,
        "tolerance": settings.tolerance,
        "size_bytes": written.size_bytes,
        "moving_nodes": _moving_nodes(folder / FLOAT),
        **parity.as_dict(),
        "int8": int8,
        "encoder": encoder,
    }
    return values, measured


def _labels(described: Mapping[str, Any]) -> list[str]:
    names: list[str] = described["class_names"]
    for name in names:
        # A folder's name may hold bytes that are no text.
        is_text = not any("\ud800" <= letter <= "\udfff" for letter in name)
        if name.splitlines() != [name] or not is_text:
            raise UserError(f"class name {name!r} is no line of text for labels.txt; rename it")
    return names


def _float(request: Request, folder: Path) -> tuple[Exported, Parity]:
    described, settings = request.student.description, request.settings
    channels, height, width = described["input_shape"]
    path = folder / FLOAT
    written = export_onnx(
        request.student.network,
        path,
        input_shape=(channels, height, width),
        class_names=described["class_names"],
        preprocessing=described["preprocessing"],
        fingerprint=described["fingerprint"],
        opset=settings.opset,
        raw_pixels=settings.raw_pixels,
    )
    parity = _compare(request, path, request.data.test)
    parity.require(settings.tolerance)
    log(
        f"  {FLOAT}: logits within {parity.max_abs_difference:.2g} of the trained network on "
        f"{parity.images} test images, top-1 {parity.onnx_top1_percent:.2f} %"
    )
    return written, parity


def _int8(request: Request, folder: Path, written: Exported) -> dict[str, Any]:
    asked = request.settings.int8
    assert asked is not None
    path = folder / INT8
    info = quantize_onnx(
        folder / FLOAT,
        path,
        _calibration(request),
        method=asked.calibration,
        leave_out=asked.leave_out,
    )
    # Where there is a validation split the test split decides nothing.
    judged = request.data.validation or request.data.test
    gate = _compare(request, path, judged)
    require_accuracy(
        gate.torch_top1_percent, gate.onnx_top1_percent, asked.max_top1_drop, gate.images
    )
    parity = gate if judged is request.data.test else _compare(request, path, request.data.test)
    share = info.size_bytes / written.size_bytes
    log(
        f"  {INT8}: top-1 {parity.onnx_top1_percent:.2f} % "
        f"({parity.onnx_top1_percent - parity.torch_top1_percent:+.2f}), {share:.2f} of the size"
    )
    return {
        **info.as_dict(),
        **parity.as_dict(),
        "gate": {
            "split": "validation" if judged is request.data.validation else "test",
            "images": gate.images,
            "top1_drop": gate.top1_drop,
            "accepted": asked.max_top1_drop,
        },
    }


def _moving_nodes(path: Path) -> int:
    graph = onnx.load(path, load_external_data=False).graph
    return sum(node.op_type in _MOVING for node in graph.node)


def _calibration(request: Request) -> Iterator[NDArray[Any]]:
    """Training images without augmentation, evenly over the split, as the file takes them."""
    asked = request.settings.int8
    assert asked is not None
    train = request.data.train
    chosen = evenly(train, asked.calibration_images)
    taken = _taken(request)
    preprocessing = request.data.preprocessing
    for images, _ in evaluation_batches(train.subset(chosen), _BATCH, preprocessing, _CPU):
        yield images.numpy() if taken is None else taken(images)


def _compare(request: Request, path: Path, images: Images) -> Parity:
    preprocessing = request.data.preprocessing
    batches = evaluation_batches(images, _BATCH, preprocessing, _CPU)
    with bar(f"  comparing {path.name}", len(images)) as advance:

        def told() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for inputs, labels in batches:
                yield inputs, labels.cpu()
                advance(len(labels))

        session = open_session(path)
        return compare(request.student.network, session, told(), taken=_taken(request))


def _taken(request: Request) -> Taken | None:
    if not request.settings.raw_pixels:
        return None
    return partial(pixels_of, preprocessing=request.data.preprocessing)


def _encoder(described: Mapping[str, Any], folder: Path, settings: Export) -> dict[str, Any] | None:
    """The encoder's file; None where the network has no last map to cut it at."""
    if described["taps"]["last_map"] is None:
        log(f"  {ENCODER}: left out, {described['architecture']['name']} has no last map")
        return None
    path = folder / ENCODER
    found = export_encoder(
        load_encoder(folder), path, fingerprint=described["fingerprint"], opset=settings.opset
    )
    log(f"  {ENCODER}: {'any image size' if found.dynamic_size else 'one image size'}")
    return found.as_dict()


def _timed(request: Request, folder: Path) -> dict[str, Any]:
    if request.latency is None:
        return {}
    files = {ORT: folder / FLOAT}
    if (folder / INT8).is_file():
        files[ORT_INT8] = folder / INT8
    channels, height, width = request.student.description["input_shape"]
    return time_runtimes(
        fold_batchnorm(request.student.network).network,
        files,
        (channels, height, width),
        request.latency,
        compiled=request.settings.compile_latency,
    )
