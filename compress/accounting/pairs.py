"""Costs saved by a student against its teacher, and added by a method, before any training.

Networks and method are built with random weights: the counts depend on shapes alone, so no data,
checkpoint or training is needed. Nothing here knows a method by name; the network that its `ship`
returns is counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from compress import models
from compress.accounting.costs import network_costs, pruning_columns
from compress.accounting.latency import measure_latency, protocol, speedup_percent
from compress.accounting.probing import blank_images
from compress.errors import UserError
from compress.methods import find_method
from compress.methods.contract import MethodContext, teacher_context
from compress.models.folding import fold_batchnorm
from compress.recipe import signatures
from compress.taps import TapSpecs
from compress.taps.discovery import discover

# A method may size its state by its training; none of that is deployed.
_BATCH_SIZE = 64
_EPOCHS = 240
_WARMUP = 3


@dataclass(frozen=True)
class CountedNetwork:
    """A network with random weights, where it can be tapped, and its `network_costs`."""

    network: nn.Module
    specs: TapSpecs
    costs: Mapping[str, Any]


def account_pair(
    *,
    teacher: str,
    student: str,
    method: Mapping[str, Any] | str = "none",
    num_classes: int,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    latency_rounds: int = 0,
) -> dict[str, Any]:
    """Costs of a teacher, a student and the network that a method deploys of it.

    Args:
        teacher: name of an architecture, see `compress.models`.
        student: likewise.
        method: name of a method, or `{"name": NAME, **arguments}` as in a recipe.
        num_classes: of both networks' classifiers.
        input_shape: (C, H, W) of one image.
        latency_rounds: timed forwards of one image through teacher and deployed network, batch
            norm folded, on the CPU. 0 times nothing and leaves latencies and speed-up None.

    Returns:
        For each of teacher, student and deployed the `network_costs` under `ROLE_parameters`,
        `ROLE_macs`, `ROLE_flops`, `ROLE_uncounted_operators`; the `pruning_columns`;
        `macs_saved_percent` and `speedup_percent` of the deployed network against the teacher.

    Raises:
        UserError: a name or an argument is unknown, or the parts do not fit each other.
    """
    name, arguments = _method_part(method)
    problems = _name_problems(teacher, student, name, arguments)
    problems += _number_problems(num_classes, input_shape, latency_rounds)
    if problems:
        raise UserError("\n".join(problems))
    large = count_network(teacher, num_classes, input_shape)
    small = count_network(student, num_classes, input_shape)
    deployed = _deployed(name, arguments, large, small, num_classes)
    return {
        "teacher": teacher,
        "student": student,
        "method": {"name": name, **arguments},
        "num_classes": num_classes,
        "input_shape": list(input_shape),
        **_costs(large, small, deployed, input_shape),
        **_timing(large.network, deployed, input_shape, latency_rounds),
    }


def count_network(name: str, num_classes: int, input_shape: tuple[int, int, int]) -> CountedNetwork:
    """Build a named architecture, find its taps and count it.

    Raises:
        UserError: the architecture is unknown or cannot be used on images of this shape.
    """
    try:
        network = models.build(name, num_classes=num_classes)
        specs = discover(network, input_shape, name)
    except Exception as error:  # whatever a forward raises on a shape that it does not take
        size = " x ".join(str(n) for n in input_shape)
        raise UserError(f"{name} cannot be used on {size} images: {error}") from None
    return CountedNetwork(network.eval(), specs, network_costs(network, input_shape))


def _method_part(method: Mapping[str, Any] | str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a method as a recipe writes it."""
    arguments = {"name": method} if isinstance(method, str) else dict(method)
    name = arguments.pop("name", None)
    if not isinstance(name, str):
        raise UserError(f"method: expected a name or {{name: NAME, ...}}, got {method!r}")
    return name, arguments


def _name_problems(
    teacher: str, student: str, method: str, arguments: Mapping[str, Any]
) -> list[str]:
    """Problems with names and arguments, before any network is built."""
    problems = []
    for role, name in (("teacher", teacher), ("student", student)):
        try:
            models.find(name)
        except UserError as error:
            problems.append(f"{role}: {error}")
    try:
        problems += signatures.check(find_method(method), arguments, f"method {method}")
    except UserError as error:
        problems.append(f"method: {error}")
    return problems


def _number_problems(num_classes: int, input_shape: Sequence[int], rounds: int) -> list[str]:
    sizes = ("classes", num_classes, 2), ("image size", min(input_shape), 1)
    return [
        f"{name}: expected {least} or more, got {number}"
        for name, number, least in (*sizes, ("latency rounds", rounds, 0))
        if number < least
    ]


def _deployed(
    name: str,
    arguments: Mapping[str, Any],
    teacher: CountedNetwork,
    student: CountedNetwork,
    num_classes: int,
) -> nn.Module:
    """The network that a method ships; it shares parameters with `student`."""
    images = max(_BATCH_SIZE, num_classes)
    try:
        context = MethodContext(
            student=student.specs,
            teachers=(teacher_context(teacher.network, teacher.specs),),
            num_classes=num_classes,
            train_size=images,
            labels=torch.arange(images) % num_classes,  # every class occurs
            batch_size=_BATCH_SIZE,
            steps_per_epoch=1,
            epochs=_EPOCHS,
        )
        return find_method(name)(context, **arguments).ship(student.network)
    except (UserError, ValueError) as error:
        raise UserError(f"method {name}: {error}") from None


def _costs(
    teacher: CountedNetwork,
    student: CountedNetwork,
    deployed: nn.Module,
    input_shape: tuple[int, int, int],
) -> dict[str, Any]:
    """Costs of the three networks, and the deployed one's savings against the teacher."""
    is_bare = deployed is student.network
    costs = student.costs if is_bare else network_costs(deployed.eval(), input_shape)
    rows = {"teacher": teacher.costs, "student": student.costs, "deployed": costs}
    parameters = {role: rows[role]["parameters"] for role in ("student", "teacher")}
    return {
        **{f"{role}_{key}": value for role, row in rows.items() for key, value in row.items()},
        **pruning_columns(deployed, **parameters),
        "macs_saved_percent": 100.0 * (1.0 - costs["macs"] / teacher.costs["macs"]),
    }


def _timing(
    teacher: nn.Module, deployed: nn.Module, input_shape: tuple[int, int, int], rounds: int
) -> dict[str, Any]:
    """Median latencies at batch 1 and the speed-up, None where nothing is timed."""
    keys = ("teacher_latency_ms", "deployed_latency_ms", "speedup_percent", "latency_protocol")
    if rounds < 1:
        reason = "not timed; ask for rounds with latency_rounds or --latency"
        return {**dict.fromkeys(keys), "latency_reason": reason}
    images = blank_images(teacher, input_shape, batch=1)
    calls = {
        role: partial(fold_batchnorm(network).network.eval(), images)
        for role, network in (("teacher", teacher), ("deployed", deployed))
    }
    with torch.inference_mode():
        latencies = measure_latency(calls, warmup=_WARMUP, rounds=rounds)
    large, small = (latencies[role].median_ms for role in ("teacher", "deployed"))
    conditions = {"batch": 1, **protocol(torch.device("cpu"), warmup=_WARMUP, rounds=rounds)}
    return dict(zip(keys, (large, small, speedup_percent(small, large), conditions), strict=True))
