"""Self-describing model files, plain checkpoints and where encoders come from.

>>> import tempfile
>>> from pathlib import Path
>>> import torch
>>> from compress.data import Preprocessing
>>> from compress.model_files import describe, load_student, open_origin, save
>>> from compress.models import build
>>> from compress.taps import discover
>>> network, folder = build("resnet8", num_classes=2), Path(tempfile.mkdtemp())
>>> description = describe(
...     {"name": "resnet8", "arguments": {}}, discover(network, (3, 8, 8), "resnet8"),
...     ("cat", "dog"), Preprocessing(8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
...     metrics={}, fingerprint="",
... )
>>> digest = save(folder, "student", network, {**description, "method": None})
>>> load_student(folder).network(torch.zeros(1, 3, 8, 8)).shape
torch.Size([1, 2])
>>> open_origin(str(folder)).encoder()(torch.zeros(1, 3, 8, 8)).shape  # up to the last map
torch.Size([1, 64, 2, 2])
"""

from compress.model_files.artifacts import (
    Encoder,
    Student,
    cut_encoder,
    describe,
    describe_method,
    load_description,
    load_student,
    load_unfinished,
    save,
)
from compress.model_files.origins import Origin, load_encoder, open_origin, origins_of
from compress.model_files.weights import load_state, read_state

__all__ = [
    "Encoder",
    "Origin",
    "Student",
    "cut_encoder",
    "describe",
    "describe_method",
    "load_description",
    "load_encoder",
    "load_state",
    "load_student",
    "load_unfinished",
    "open_origin",
    "origins_of",
    "read_state",
    "save",
]
