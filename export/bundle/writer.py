"""The bundle: one folder that runs anywhere and proves that it is the trained network.

student.onnx  student.int8.onnx  encoder.onnx  student.safetensors + student.json  labels.txt
preprocess.json  predict.py  MODEL_CARD.md  manifest.json (SHA-256 of every other file)

That of a student which gives embeddings has no labels.txt, that of one which segments no
encoder.onnx.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch

from compress.console.messages import log
from compress.environment import environment
from compress.errors import UserError
from compress.model_files.artifacts import (
    Encoder,
    cut_encoder,
    encoder_state,
    is_dense,
    load_student,
    save,
)
from compress.model_files.origins import load_encoder
from compress.models.folding import fold_batchnorm
from compress.storage.files import write_json, write_text
from compress.taps import TapSpecs
from compress.text import is_line, printable
from export.bundle import predict
from export.bundle.card import model_card
from export.bundle.contents import (
    ENCODER,
    FLAVOURS,
    FLOAT,
    FULL_RANGE,
    INT8,
    LABELS,
    SCRIPT,
    embeds,
    preprocess_content,
)
from export.bundle.int8_file import Int8Outcome, write_int8
from export.bundle.interfaces import preparation_words, read_interface
from export.bundle.manifest import write_manifest
from export.bundle.parity import OutputParity
from export.bundle.request import BundleRequest, compare_file, require_other_size
from export.bundle.timing import ORT, ORT_INT8, ORT_TEACHER, time_runtimes
from export.onnx import Exported, export_encoder, export_onnx

_CPU = torch.device("cpu")
# Hidden folders in which a bundle is made; what a kill leaves of one may be deleted.
UNFINISHED = ".bundle-"
# Operators that move numbers and compute nothing.
_MOVING = {"Concat", "Gather", "Reshape", "Slice", "Split", "Transpose"}


def write_bundle(request: BundleRequest, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the bundle to `folder`, which must not exist; all of it or nothing.

    Returns:
        Reproducible values (sizes, parity, accuracy), and measured times.

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


def _fill(request: BundleRequest, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    student, settings = request.student, request.settings
    description = student.description
    save(folder, "student", student.network, description)
    if not embeds(description):
        write_text(folder / LABELS, "".join(f"{printable(n)}\n" for n in _labels(description)))
    content = preprocess_content(
        description["preprocessing"],
        raw_pixels=settings.raw_pixels,
        any_size=is_dense(description),
    )
    write_json(folder / "preprocess.json", content)
    shutil.copyfile(predict.__file__, folder / SCRIPT)
    written, parity = _write_float(request, folder)
    int8 = write_int8(request, folder, written.size_bytes)
    encoder = _write_encoder(request, folder)
    measured = _time(request, folder)
    onnx_files = sorted(folder.glob("*.onnx"))
    preparation = preparation_words(content)
    interfaces = {path.name: read_interface(path, content) for path in onnx_files}
    results = {
        "parity": parity.as_dict(),
        "int8": int8.values,
        "int8_refused": int8.refused,
        "int8_search": int8.search,
        "preprocess": content,
        "preparation": preparation,
        "interfaces": interfaces,
    }
    write_text(folder / "MODEL_CARD.md", model_card(_facts(request, folder, results, measured)))
    write_manifest(
        folder,
        student=request.name,
        fingerprint=description["fingerprint"],
        data=request.data_section,
        opset=settings.opset,
        int8=_int8_label(int8),
        preparation=preparation,
        interfaces=interfaces,
    )
    values = {
        "student": request.name,
        "remark": request.remark,
        "opset": settings.opset,
        "raw_pixels": settings.raw_pixels,
        "tolerance": settings.tolerance,
        "size_bytes": written.size_bytes,
        "moving_nodes": _moving_nodes(folder / FLOAT),
        **parity.as_dict(),
        "int8": int8.values,
        "int8_refused": int8.refused,
        "int8_search": int8.search,
        "encoder": encoder,
    }
    return values, measured


def _facts(
    request: BundleRequest,
    folder: Path,
    results: Mapping[str, Any],
    measured: Mapping[str, Any],
) -> dict[str, Any]:
    """Content of the model card."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return {
        **results,
        "name": request.name,
        "remark": request.remark,
        "license": request.settings.license,
        "student": request.student.description,
        "data": request.data_section,
        "files": {k: v for k, v in sizes.items() if k.endswith((".onnx", ".data", ".safetensors"))},
        "latency": measured or None,
        "costs": request.costs,
        "training": request.training,
        "teachers": request.teachers,
        "machine": environment(_CPU),
    }


def _labels(description: Mapping[str, Any]) -> list[str]:
    names: list[str] = description["class_names"]
    for name in names:  # a folder's name may hold line breaks, and bytes that are no text
        if not is_line(name):
            raise UserError(f"class name {name!r} is no line of text for labels.txt; rename it")
    return names


def _write_float(request: BundleRequest, folder: Path) -> tuple[Exported, OutputParity]:
    description, settings = request.student.description, request.settings
    channels, height, width = description["input_shape"]
    path = folder / FLOAT
    written = export_onnx(
        request.student.network,
        path,
        input_shape=(channels, height, width),
        class_names=description["class_names"],
        preprocessing=description["preprocessing"],
        fingerprint=description["fingerprint"],
        opset=settings.opset,
        raw_pixels=settings.raw_pixels,
        dense=is_dense(description),
    )
    parity = compare_file(request, path, request.data.test)
    parity.require(settings.tolerance)
    if written.dynamic_size:
        require_other_size(request, path)
    log(
        f"  {FLOAT}: {parity.noun}s within {parity.max_abs_difference:.2g} of the trained network "
        f"on {parity.images} test images, {parity.in_words()}"
    )
    return written, parity


def _int8_label(int8: Int8Outcome) -> dict[str, Any] | None:
    """The manifest's entry on the int8 file: where it is right, or why it is missing."""
    searched = {} if int8.search is None else {"search": int8.search}
    if int8.values is None:
        return None if int8.refused is None else {"refused": int8.refused, **searched}
    full, flavour = int8.values["full_range"], int8.values["flavour"]
    label = {"full_range": full, "note": FULL_RANGE if full else "right on every CPU"}
    if int8.values["drop_words"] is not None:
        label |= {"accuracy": int8.values["drop_words"], "remark": int8.values["gate"]["remark"]}
    if flavour in FLAVOURS:
        label |= {"flavour": flavour, "flavour_note": FLAVOURS[flavour]}
    return {**label, **searched}


def _moving_nodes(path: Path) -> int:
    graph = onnx.load(path, load_external_data=False).graph
    return sum(node.op_type in _MOVING for node in graph.node)


def _write_encoder(request: BundleRequest, folder: Path) -> dict[str, Any] | None:
    """Write the encoder's file; None if the network has no last map to cut it at, or segments."""
    description, settings = request.student.description, request.settings
    if is_dense(description):
        log(f"  {ENCODER}: left out, the transfer tasks take encoders of classifiers and embedders")
        return None
    if description["taps"]["last_map"] is None:
        log(f"  {ENCODER}: left out, {description['architecture']['name']} has no last map")
        return None
    path = folder / ENCODER
    exported = export_encoder(
        _encoder(request, folder),
        path,
        fingerprint=description["fingerprint"],
        opset=settings.opset,
    )
    log(f"  {ENCODER}: {'any image size' if exported.dynamic_size else 'one image size'}")
    return exported.as_dict()


def _encoder(request: BundleRequest, folder: Path) -> Encoder:
    """The encoder of the student in `folder`, or cut out of its network in memory."""
    if request.plain is None:
        return load_encoder(folder)
    description = request.student.description
    return cut_encoder(
        request.plain,
        TapSpecs.from_dict(description["taps"]),
        request.data.preprocessing,
        encoder_state(request.student.network.state_dict(), description),
        description["architecture"]["name"],
    )


def _time(request: BundleRequest, folder: Path) -> dict[str, Any]:
    """Latency of each file and, in turns with them, of the teacher as a file of the same form."""
    if request.latency is None:
        return {}
    files = {ORT: folder / FLOAT}
    if (folder / INT8).is_file():
        files[ORT_INT8] = folder / INT8
    channels, height, width = request.student.description["input_shape"]
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=UNFINISHED) as apart:
        teacher = _write_teacher(request, Path(apart) / "teacher.onnx")
        if teacher.get("size_bytes") is not None:
            files = {ORT_TEACHER: Path(apart) / "teacher.onnx", **files}
        timed = time_runtimes(
            fold_batchnorm(request.student.network).network,
            files,
            (channels, height, width),
            request.latency,
            compiled=request.settings.compile_latency,
        )
    return {**timed, "teacher": teacher}


def _write_teacher(request: BundleRequest, path: Path) -> dict[str, Any]:
    """Write the teacher as the student is written: its size in bytes, or why it has no file."""
    if request.teacher is None:
        return {}
    try:
        teacher = load_student(request.teacher, "teacher")
        channels, height, width = teacher.description["input_shape"]
        written = export_onnx(
            teacher.network,
            path,
            input_shape=(channels, height, width),
            class_names=teacher.description["class_names"],
            preprocessing=teacher.description["preprocessing"],
            fingerprint=teacher.description["fingerprint"],
            opset=request.settings.opset,
            raw_pixels=request.settings.raw_pixels,
            dense=is_dense(teacher.description),
        )
    except UserError as error:
        log(f"  the teacher is not timed beside the files: {error}")
        return {"not_exported": str(error)}
    return {"size_bytes": written.size_bytes}
