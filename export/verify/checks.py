"""Whether a bundle's files fit each other and the data that they are checked on."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compress.data import DATASETS, Dataset, Preprocessing, open_data
from compress.errors import UserError, nearest
from compress.model_files.artifacts import Student, load_student
from compress.onnx.files import check_file, open_session, takes_pixels
from compress.recipe.schema import Data
from compress.storage.files import read_mapping
from export.bundle.layout import FLOAT, preprocess_content
from export.bundle.manifest import Manifest

_NEEDED = (FLOAT, "student.safetensors", "student.json", "labels.txt", "preprocess.json")


def check_graphs(bundle: Path, manifest: Manifest) -> dict[str, int]:
    """The opset of each ONNX file, every one valid by ONNX's own checker.

    Raises:
        UserError: one is not, or the bundle lacks a file that it must have.
    """
    for name in _NEEDED:
        if name not in manifest.files:
            raise UserError(f"{bundle} is no whole bundle: its manifest lists no {name}")
    return {n: check_file(bundle / n) for n in sorted(manifest.files) if n.endswith(".onnx")}


def load_described(bundle: Path) -> Student:
    """The bundle's torch network, once all descriptions in the bundle say the same of it.

    Raises:
        UserError: labels.txt or preprocess.json contradict student.json or the ONNX file.
    """
    student = load_student(bundle)
    described = student.description
    raw = takes_pixels(open_session(bundle / FLOAT))
    labels = (bundle / "labels.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if labels != list(described["class_names"]):
        raise UserError(f"{bundle}: labels.txt names other classes than student.json; export again")
    expected = preprocess_content(described["preprocessing"], raw_pixels=raw)
    found = read_mapping(bundle / "preprocess.json")
    for key, value in expected.items():
        if found.get(key) != value:
            raise UserError(
                f"{bundle}: preprocess.json says {key} {found.get(key)!r}, student.json and "
                f"{FLOAT} say {value!r}; export again"
            )
    return student


def require_same_data(bundle: Path, student: Student, data: Dataset) -> None:
    """Refuse images that the network was not made for.

    Raises:
        UserError: the data set has other classes or another preprocessing.
    """
    own = Preprocessing.from_dict(student.description["preprocessing"])
    if data.preprocessing != own:
        raise UserError(
            f"{bundle} was made for {own.as_dict()}, the data set is opened with "
            f"{data.preprocessing.as_dict()}; give the data that it was trained on"
        )
    if list(data.class_names) != list(student.description["class_names"]):
        raise UserError(
            f"the data set's {len(data.class_names)} classes are not the "
            f"{student.description['num_classes']} of {bundle} in their order; "
            "give the data that it was trained on"
        )


def open_described(section: Mapping[str, Any], root: Path | None) -> Dataset:
    """The data set that the manifest describes; its folder is the user's to say.

    Raises:
        UserError: there is no such data set, or not in that folder.
    """
    name = str(section.get("name"))
    if name not in DATASETS:
        raise UserError(
            f"the manifest names data set '{name}'; known: {', '.join(DATASETS)}"
            f"{nearest(name, DATASETS)}"
        )
    needs_root = "root" in inspect.signature(DATASETS[name]).parameters
    if needs_root and root is None:
        raise UserError(f"data set '{name}' is in a folder of yours; say which with --data FOLDER")
    if root is not None and not needs_root:
        raise UserError(f"data set '{name}' is not in a folder; leave out --data")
    given = {**section, **({"root": str(root)} if root is not None else {})}
    try:
        spec = Data.model_validate(given)
        inspect.signature(DATASETS[name]).bind(**spec.arguments)
    except (ValidationError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the manifest's data section is not this version's: {reason}") from None
    return open_data(spec.model_dump(), seed=spec.seed or 0)
