"""A training that is ready for its first step, and checks of what it is made from."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from compress import models
from compress.data import Batch, Preprocessing
from compress.distill.module import Distillation
from compress.distiller.loader import LoaderBatches, steps_of
from compress.errors import UserError, in_one_line
from compress.methods import find_method
from compress.methods.contract import NetworkForward, Phase
from compress.models import user_code
from compress.models.forward import check_forward
from compress.recipe import describe_errors, signatures
from compress.recipe.schema import TapPaths
from compress.seeding import seeded
from compress.taps import TapSpecs
from compress.taps.discovery import discover
from compress.teacher.inference import make_fast

ROLE = "student"  # of a training: keys its random numbers, begins its messages


@dataclass
class Prepared:
    """A training that is ready for its first step; `steps` of it were taken by a loop outside."""

    module: Distillation
    batches: LoaderBatches
    probe: Batch
    fingerprint: str
    describe: Callable[..., dict[str, Any]]
    seed: int
    steps: int = 0

    def begin(self, phase: Phase | None) -> None:
        """Prepare for a phase or the main training, with teachers as fast as a recipe's."""
        wanted, context = self.module.teacher_taps(phase), self.module.method.context
        fast = [
            NetworkForward(
                make_fast(teacher.network, teacher.taps, wanted, compile=False, precision="float32")
            )
            for teacher in (context.teachers if wanted else ())
            if teacher.network is not None
        ]
        with seeded(self.seed, ROLE, "probe"):
            self.module.begin_phase(phase, self.probe, teachers=fast)


def check_method(name: str, arguments: Mapping[str, Any], protocol: str) -> None:
    """Refuse names and arguments that there are not, with a UserError."""
    try:
        method = find_method(name)
    except UserError as error:
        raise UserError(str(error).replace("unknown name", "unknown method", 1)) from None
    user_code.trust(name)
    if problems := signatures.check(method, arguments, name):
        raise UserError("\n".join(problems))
    known = method.needs(arguments).protocols
    if protocol not in known:
        raise UserError(f"unknown protocol '{protocol}'; known: {', '.join(known)}")


def class_names_of(classes: int | Sequence[str]) -> tuple[str, ...]:
    """The names of classes, which are numbers where only theirs is known."""
    names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
    if len(names) < 2:
        raise UserError(f"classes: {classes!r}; expected two or more, by number or by name")
    return names


def batch_size_of(loader: Any) -> int:
    """The images of a loader's usual batch."""
    steps_of(loader)
    with seeded("batch size"):
        return loader.batch_size or len(next(iter(loader.batch_sampler)))


def look_at(
    network: nn.Module,
    who: str,
    preprocessing: Preprocessing,
    paths: Mapping[str, Any],
    *,
    learns: bool,
) -> TapSpecs:
    """The taps of a network.

    Args:
        paths: `stages` and `last_map`, where they are not to be found.
        learns: it is to run in training mode, too.

    Raises:
        UserError: it does not give one tensor (N, K) of such images, or changes them.
    """
    taps, shape = validated(TapPaths, paths), preprocessing.input_shape
    try:
        specs = discover(network, shape, who, **taps.model_dump())
        check_forward(network, shape, learns=learns)
    except RuntimeError as error:
        raise UserError(f"{who} cannot run on images {shape}: {in_one_line(error)}") from error
    return specs


def architecture_of(
    student: nn.Module, given: str | Mapping[str, Any] | None, num_classes: int
) -> dict[str, Any]:
    """How a student is built; what is given is tried.

    Raises:
        UserError: another network is built so.
    """
    if given is None:
        return {"name": import_path(student), "arguments": {}}
    arguments = {"name": given} if isinstance(given, str) else dict(given)
    name = arguments.pop("name")
    built = models.build(name, num_classes=num_classes, **arguments)
    shapes, own = ({k: v.shape for k, v in n.state_dict().items()} for n in (built, student))
    wrong = sorted(k for k in {*shapes, *own} if shapes.get(k) != own.get(k))
    if wrong:
        raise UserError(
            f"architecture: {name} builds another network than the student: {len(wrong)} tensors "
            f"differ, first '{wrong[0]}'"
        )
    user_code.trust(name)
    return {"name": name, "arguments": arguments}


def import_path(network: nn.Module) -> str:
    """`module:Class` of a network."""
    return f"{type(network).__module__}:{type(network).__qualname__}"


def digest_of(network: nn.Module) -> str:
    """Identifies a network's weights."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def validated(schema: type[Any], values: Mapping[str, Any]) -> Any:
    """A section of a recipe; what is wrong with it as a UserError."""
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        assert issubclass(schema, BaseModel)
        raise UserError("\n".join(describe_errors(error, schema))) from None
