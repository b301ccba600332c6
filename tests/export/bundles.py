"""A small bundle of a network that knows its digits, written file by file."""

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress import model_files
from compress.data import Dataset, Preprocessing, evaluation_batches, open_data
from compress.model_files import load_encoder
from compress.models import build
from compress.taps import discover
from export import export_encoder, export_onnx
from export.bundle import predict
from export.bundle.contents import preprocess_content
from export.bundle.manifest import write_manifest
from tests.export.networks import trained
from tests.export.tracing import traced_exports

DATA: dict[str, Any] = {"name": "digits", "test_images": 60, "seed": 0}
CPU = torch.device("cpu")


@lru_cache
def digits() -> Dataset:
    return open_data(DATA)


@lru_cache
def network() -> nn.Module:
    """A random encoder under a classifier that is solved for; right on most digits."""
    data = digits()
    body = trained(build("resnet8", num_classes=10), size=16)
    ((images, labels),) = evaluation_batches(data.train, 2000, data.preprocessing, CPU)
    head = body.get_submodule("fc")
    body.fc = nn.Identity()
    with torch.no_grad():
        features = torch.cat([body(images), torch.ones(len(images), 1)], 1)
        solved = torch.linalg.lstsq(features, 10 * torch.eye(10)[labels]).solution
        head.weight.copy_(solved[:-1].T)
        head.bias.copy_(solved[-1])
    body.fc = head
    return body


def confused() -> nn.Module:
    """The same with its classes moved on by one: wrong wherever the other is right."""
    other = build("resnet8", num_classes=10)
    other.load_state_dict(network().state_dict())
    with torch.no_grad():
        other.fc.weight.copy_(other.fc.weight.roll(1, 0))  # type: ignore[union-attr, operator]
        other.fc.bias.copy_(other.fc.bias.roll(1, 0))  # type: ignore[union-attr, operator]
    return other.eval()


def write_onnx(path: Path, student: nn.Module, *, raw: bool, preprocessing: Preprocessing) -> None:
    with traced_exports():
        export_onnx(
            student,
            path,
            input_shape=preprocessing.input_shape,
            class_names=digits().class_names,
            preprocessing=preprocessing.as_dict(),
            fingerprint="0123abcd",
            raw_pixels=raw,
        )


def write(folder: Path, *, raw: bool = False, preprocessing: Preprocessing | None = None) -> Path:
    """A bundle whose int8 file is one in name alone."""
    folder.mkdir()
    own, data = preprocessing or digits().preprocessing, digits()
    description = model_files.describe(
        {"name": "resnet8", "arguments": {}},
        discover(network(), own.input_shape, "student"),
        data.class_names,
        own,
        metrics={},
        fingerprint="0123abcd",
    )
    described = {**description, "method": None, "encoder_prefix": ""}
    model_files.save(folder, "student", network(), described)
    write_onnx(folder / "student.onnx", network(), raw=raw, preprocessing=own)
    shutil.copy(folder / "student.onnx", folder / "student.int8.onnx")
    encoder = load_encoder(folder)
    with traced_exports():
        export_encoder(encoder, folder / "encoder.onnx")
    (folder / "labels.txt").write_text("".join(f"{n}\n" for n in data.class_names))
    (folder / "preprocess.json").write_text(
        json.dumps(preprocess_content(own.as_dict(), raw_pixels=raw))
    )
    shutil.copy(predict.__file__, folder / "predict.py")
    return listed(folder)


def listed(folder: Path, data: dict[str, Any] = DATA, int8: dict[str, Any] | None = None) -> Path:
    """The bundle, its manifest written for what it holds now."""
    write_manifest(folder, student="none", fingerprint="0123abcd", data=data, opset=18, int8=int8)
    return folder
