"""Check that a bundle's files fit each other and the data that they are compared on."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from pydantic import ValidationError

from compress import __version__
from compress.data import DATASETS, Dataset, Preprocessing, open_data
from compress.errors import UserError, nearest
from compress.model_files.artifacts import Student, is_dense, load_student
from compress.onnx.files import check_file, open_session, takes_pixels
from compress.onnx.qdq import FLAVOURS, LARGEST_SAFE_WEIGHT, largest_weight
from compress.recipe.schema import Data, describe_errors
from compress.recipe.signatures import check_named
from compress.storage.files import read_mapping
from compress.text import printable, short_repr
from export.bundle import predict
from export.bundle.contents import FLOAT, INT8, LABELS, SCRIPT, embeds, preprocess_content
from export.bundle.interfaces import read_interface
from export.bundle.manifest import Manifest

_NEEDED = (FLOAT, "student.safetensors", "student.json", "preprocess.json")


def check_graphs(bundle: Path, manifest: Manifest) -> dict[str, int]:
    """The opset of each ONNX file, every one valid by ONNX's own checker.

    Raises:
        UserError: one is not, or the bundle lacks a file that it must have.
    """
    for name in _NEEDED:
        if name not in manifest.files:
            raise UserError(f"{bundle} is no whole bundle: its manifest lists no {name}")
    return {n: check_file(bundle / n) for n in sorted(manifest.files) if n.endswith(".onnx")}


def check_script(bundle: Path, manifest: Manifest) -> list[str]:
    """A sentence if predict.py, which runs wherever the bundle goes, is not this version's."""
    path, own = bundle / SCRIPT, Path(predict.__file__)
    if not path.is_file():
        return [f"the bundle has no {SCRIPT}; export it again"]
    if path.read_bytes() == own.read_bytes():
        return []
    return [
        f"{SCRIPT} is not the one that compress {__version__} writes (the manifest says that "
        f"{short_repr(manifest.made_by)} wrote the bundle), and what it does was not checked: "
        f"export again, or use python -m export.bundle.predict {bundle} in its place"
    ]


def check_weights(bundle: Path, manifest: Manifest) -> list[str]:
    """A sentence if the int8 file is wrong on some CPUs and the manifest does not say so."""
    if INT8 not in manifest.files or (manifest.int8 or {}).get("full_range"):
        return []
    largest = largest_weight(onnx.load(bundle / INT8).graph)
    if largest <= LARGEST_SAFE_WEIGHT:
        return []
    return [
        f"{INT8}: its weights go up to {largest}; products saturate above {LARGEST_SAFE_WEIGHT} on "
        "x86 CPUs before VNNI, and the manifest does not label the file so; export again"
    ]


def check_flavour(bundle: Path, manifest: Manifest) -> list[str]:
    """A sentence if the int8 file is not of the flavour that the manifest says."""
    flavour = (manifest.int8 or {}).get("flavour")
    if INT8 not in manifest.files or flavour is None:
        return []
    if flavour not in FLAVOURS:
        hint = nearest(str(flavour), FLAVOURS)
        return [f"the manifest names int8 flavour {short_repr(flavour)}{hint}"]
    clauses = FLAVOURS[flavour].list_unsuitable(onnx.load(bundle / INT8).graph)
    return [f"{INT8} is not of flavour {flavour}: {', '.join(clauses)}"] if clauses else []


def check_interfaces(bundle: Path, manifest: Manifest) -> list[str]:
    """A sentence for each ONNX file whose inputs and outputs are not what the manifest says."""
    if manifest.interfaces is None:
        return []
    preprocess = read_mapping(bundle / "preprocess.json")
    names = [name for name in sorted(manifest.files) if name.endswith(".onnx")]
    return [
        f"{name}: its inputs and outputs are not those that the manifest describes; export again"
        for name in names
        if manifest.interfaces.get(name) != read_interface(bundle / name, preprocess)
    ]


def load_consistent(bundle: Path) -> Student:
    """Load the bundle's torch network after checking that all its descriptions agree.

    Raises:
        UserError: labels.txt or preprocess.json contradict student.json or the ONNX file.
    """
    student = load_student(bundle)
    description = student.description
    raw = takes_pixels(open_session(bundle / FLOAT))
    if not embeds(description):
        if not (bundle / LABELS).is_file():
            raise UserError(f"{bundle} is no whole bundle: its manifest lists no {LABELS}")
        _require_labels(bundle, description)
    expected = preprocess_content(
        description["preprocessing"], raw_pixels=raw, any_size=is_dense(description)
    )
    actual = read_mapping(bundle / "preprocess.json")
    for key, value in expected.items():
        if actual.get(key) != value:
            raise UserError(
                f"{bundle}: preprocess.json says {key} {short_repr(actual.get(key))}, student.json "
                f"and {FLOAT} say {value!r}; export again"
            )
    return student


def _require_labels(bundle: Path, description: Mapping[str, Any]) -> None:
    text = (bundle / LABELS).read_text(encoding="utf-8", errors="surrogateescape")
    labels = text.removesuffix("\n").split("\n")
    if [*map(printable, labels)] != [*map(printable, description["class_names"])]:
        raise UserError(f"{bundle}: labels.txt names other classes than student.json; export again")


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


def open_manifest_data(
    section: Mapping[str, Any], root: Path | None, *, image_size: int
) -> Dataset:
    """Open the data set that the manifest describes, in the user's folder `root`.

    Args:
        image_size: the student's, in pixels.

    Raises:
        UserError: there is no such data set, or not in that folder.
    """
    name = section.get("name")
    if not isinstance(name, str) or name not in DATASETS:
        raise UserError(
            f"the manifest names data set {short_repr(name)}; known: {', '.join(DATASETS)}"
            f"{nearest(str(name), DATASETS)}"
        )
    needs_root = "root" in inspect.signature(DATASETS[name]).parameters
    if needs_root and root is None:
        raise UserError(f"data set '{name}' is in a folder of yours; say which with --data FOLDER")
    if root is not None and not needs_root:
        raise UserError(f"data set '{name}' is not in a folder; leave out --data")
    values = {**section, **({"root": str(root)} if root is not None else {})}
    if section.get("image_size") is not None and section["image_size"] != image_size:
        raise UserError(
            f"the manifest says that the data set is opened with image_size "
            f"{short_repr(section['image_size'])}, student.json says {image_size}; export again"
        )
    try:
        spec = Data.model_validate(values)
        problems = check_named(spec, DATASETS, "data", supplied=("image_size",))
    except ValidationError as error:
        problems = describe_errors(error, Data)
    if problems:
        raise UserError(f"the manifest's data section is not this version's: {problems[0]}")
    return open_data(spec.model_dump(), seed=spec.seed or 0)
