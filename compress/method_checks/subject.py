"""A method of any name on small networks, as the checks want it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from compress.distill import Distillation
from compress.errors import UserError
from compress.method_checks import networks
from compress.method_checks.checks import Make
from compress.methods import find_method
from compress.recipe import signatures
from compress.tasks import Classification, Segmentation

_SEVERAL = 2


def subject(
    name: str,
    arguments: Mapping[str, Any],
    *,
    student: str = "resnet8",
    teacher: str = "resnet8x4",
) -> Make:
    """A function that builds a method on small networks of random weights, the same each time.

    The method has one teacher, or two where it refuses one; it is built for pixels where it is for
    nothing else. Its own term is computed also where its published weight is 0.

    Args:
        student, teacher: names of architectures for 16 pixels.

    Raises:
        UserError: there is no such method, or it cannot be built with these arguments or networks.
    """
    method = find_method(name)
    if problems := signatures.check(method, arguments, name):
        raise UserError("\n".join(problems))
    dense = not method.images
    protocols = method.needs(arguments).protocols
    protocol = "segmentation" if dense else "simkd"
    if protocol not in protocols:
        raise UserError(
            f"{name}: `protocols` has {', '.join(protocols)}; expected '{protocol}' among them"
        )
    terms = protocols[protocol]
    terms = replace(terms, method=terms.method or 1)

    def make(teachers: int) -> Distillation:
        build = networks.dense_networks if dense else networks.networks
        own, known = build(teachers, student, teacher)
        torch.manual_seed(0)
        return Distillation(
            own,
            known,
            method(networks.context(own, known, dense=dense), **arguments),
            terms,
            Segmentation() if dense else Classification(),
            kd_temperature=4.0,
        )

    reasons = []
    for teachers in range(1, _SEVERAL + 1):
        try:
            make(teachers)
        except (UserError, ValueError) as error:
            reasons.append(f"with {teachers} teacher{'s' * (teachers > 1)}: {error}")
        except Exception as error:  # whatever a user's own code raises
            kind = type(error).__name__
            raise UserError(f"{name} cannot be built: {kind}: {error}") from error
        else:
            return lambda: make(teachers)
    raise UserError(f"{name} cannot be built for {teacher} -> {student}: {'; '.join(reasons)}")
