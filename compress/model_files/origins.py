"""Networks from a run, a bundle or a plain checkpoint, read in one way."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from compress.data import Preprocessing
from compress.errors import UserError
from compress.model_files.artifacts import (
    Encoder,
    build_plain,
    cut_encoder,
    encoder_state,
    is_described,
    load_description,
)
from compress.model_files.plain import State, plain_description
from compress.model_files.weight_checks import check_finite, check_kinds
from compress.model_files.weights import find_state
from compress.recipe.files import load_resolved
from compress.storage.files import read_tensors
from compress.storage.fingerprints import fingerprint_of, sha256_file
from compress.storage.results import require_whole
from compress.taps import TapSpecs

_FORMS = (
    "a run directory, RUN/distill/LABEL, a bundle (RUN/export/bundle), or MODEL@DEFAULT or "
    "MODEL@FILE.pth with MODEL such as torchvision:resnet50"
)

# What of a description makes the network and its input, whatever the weights are.
_FORM = ("architecture", "code", "num_classes", "preprocessing", "taps")


@dataclass(frozen=True)
class Origin:
    """A student's (or teacher's) network and the weights of its encoder.

    `description` is what a model file says of itself (see `compress.model_files.artifacts`), `read`
    gives the weights under the names of the plain architecture, `digest` identifies both. `weights`
    is the file beside the description, where there is one; `reference` is as the user named it.
    """

    name: str
    reference: str
    description: Mapping[str, Any]
    read: Callable[[], State]
    digest: str
    allow_partial: bool = False
    weights: Path | None = None

    @property
    def taps(self) -> TapSpecs:
        """Taps of the plain architecture."""
        return TapSpecs.from_dict(self.description["taps"])

    @property
    def preprocessing(self) -> Preprocessing:
        """From an image to the network's input."""
        return Preprocessing.from_dict(self.description["preprocessing"])

    def describe(self) -> dict[str, Any]:
        """Plain values for a result: what was given, the architecture, its weights' digest."""
        architecture = self.description["architecture"]
        return {"name": self.name, "architecture": dict(architecture), "digest": self.digest}

    def identity(self, *, weights: bool = True) -> str:
        """A digest of all that a training takes from here; without weights, of the form alone."""
        form = {key: self.description.get(key) for key in _FORM}
        return fingerprint_of({**form, "weights": self.digest if weights else None})

    def encoder(self, *, weights: bool = True, seed: int = 0) -> Encoder:
        """The network up to its last map; without weights, the initialisation of `seed`.

        Raises:
            UserError: not all of the encoder's tensors were found, and that was not allowed, or
                one is not finite.
        """
        return self._built(weights, seed)[1]

    def network(self, *, weights: bool = True, seed: int = 0) -> nn.Module:
        """The plain architecture, classifier included, under its training names.

        With weights the encoder's are loaded, and the classifier's where the file has them.
        """
        return self._built(weights, seed)[0]

    def _built(self, weights: bool, seed: int) -> tuple[nn.Module, Encoder]:
        network = build_plain(self.description, seed=seed, weights=self.weights)
        state = self.read() if weights else {}
        check_kinds(state, network.state_dict(), self.reference)
        encoder = cut_encoder(network, self.taps, self.preprocessing, state, self.name)
        if weights and encoder.matched_percent < 100 and not self.allow_partial:
            raise UserError(
                f"{self.reference}: only {encoder.matched_percent:.1f} % of the encoder's weights "
                "were found in the file; it was written for another architecture (--allow-partial "
                "takes it all the same)."
            )
        check_finite(encoder.body.state_dict(), self.reference)
        return network, encoder


def open_origin(reference: str, *, model: str | None = None, allow_partial: bool = False) -> Origin:
    """Open what a user named; `model` is the architecture where it is a file of weights alone.

    Raises:
        UserError: there is no such thing, or it is no student.
    """
    path = Path(reference)
    for name in ("student", "teacher"):
        if (path / f"{name}.json").is_file():
            return _described(path, name, reference, allow_partial)
    if path.is_dir():
        return _described(path / "distill" / _main_label(path), "student", reference, allow_partial)
    if model is None and path.is_file() and is_described(path):
        return _described(path.parent, path.stem, reference, allow_partial)
    if model is not None:
        return _plain(model, reference, f"{model}@{reference}", allow_partial)
    architecture, at, weights = reference.partition("@")
    if at or ":" in reference:
        return _plain(architecture, weights, reference, allow_partial)
    raise UserError(f"'{reference}' is no encoder (looked in {Path.cwd()}); give {_FORMS}")


def load_encoder(folder: Path, *, weights: bool = True, seed: int = 0) -> Encoder:
    """The encoder of a model file in `folder`, projector and classifier dropped, see `Origin`."""
    return open_origin(str(folder)).encoder(weights=weights, seed=seed)


def origins_of(run: Path) -> dict[str, Path]:
    """Label -> folder of every finished student of a run, and of its teacher."""
    files = sorted((run / "distill").glob("*/student.json"))
    folders = {file.parent.name: file.parent for file in files}
    teachers = sorted((run / "teacher").glob("*/teacher.json"), key=lambda p: int(p.parent.name))
    for number, file in enumerate(teachers):
        folders["teacher" if number == 0 else f"teacher-{number + 1}"] = file.parent
    return folders


def _main_label(run: Path) -> str:
    """The label of the student of a run's main method, whether or not it ships."""
    if not (run / "resolved.yaml").is_file():
        raise UserError(f"'{run}' is neither a run directory nor a bundle; give {_FORMS}")
    label = load_resolved(run).distill.method.row
    trained = origins_of(run)
    if label not in trained:
        known = ", ".join(trained) or "none"
        raise UserError(f"{run} has no trained student '{label}' yet; trained: {known}")
    return label


def _described(folder: Path, name: str, reference: str, allow_partial: bool) -> Origin:
    require_whole(folder, name)
    description = load_description(folder, name)
    weights = folder / f"{name}.safetensors"
    if not weights.is_file():
        raise UserError(f"{weights} not found; {folder / name}.json describes it")
    digest = fingerprint_of({"weights": sha256_file(weights), "taps": description["taps"]})
    label = description.get("label") or folder.name

    def read() -> State:
        return encoder_state(read_tensors(weights)[0], description)

    return Origin(label, reference, description, read, digest, allow_partial, weights)


def _plain(model: str, weights: str, place: str, allow_partial: bool) -> Origin:
    """A named architecture with published weights, with those of a file, or with none."""
    state = find_state(model, weights) if weights else None
    description = plain_description(model, state, None if allow_partial else place)

    def read() -> State:
        if state is None:
            raise UserError(f"'{place}' names no weights; add @DEFAULT or @FILE.pth")
        return state

    identity = sha256_file(Path(weights)) if Path(weights).is_file() else weights
    digest = fingerprint_of({"model": model, "weights": identity})
    name = "-".join(filter(None, (model.split(":")[-1], Path(weights).stem)))
    return Origin(name, place, description, read, digest, allow_partial)
