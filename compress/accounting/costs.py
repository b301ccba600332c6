"""The columns that every table of costs has; one function per kind of row."""

from typing import Any

from torch import nn

from compress.accounting.macs import count_macs
from compress.accounting.pruning import (
    projector_to_student_percent,
    pruning_ratio_cost_points,
    pruning_ratio_percent,
)
from compress.accounting.size import count_parameters


def network_costs(network: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Parameters, MACs, FLOPs and uncounted operators of a network on one image (C, H, W)."""
    counted = count_macs(network, input_shape)
    return {
        "parameters": count_parameters(network),
        "macs": counted.macs,
        "flops": 2 * counted.macs,
        "uncounted_operators": counted.uncounted,
    }


def pruning_columns(deployed: nn.Module, *, student: int, teacher: int | None) -> dict[str, Any]:
    """Pruning ratio of a deployed network, and the share that its projector costs of it.

    Args:
        deployed: the network that a method ships; its submodule `projector` is counted as one,
            and so are those of its `others`, which it has for further teachers.
        student: parameters of the student.
        teacher: parameters of the teacher; None where nobody knows them: no ratios.
    """
    parameters = count_parameters(deployed)
    added = _projector_parameters(deployed)
    share = {"projector_to_student_percent": projector_to_student_percent(added, student)}
    if teacher is None:
        return {"projector_parameters": added, **share}
    return {
        "projector_parameters": added,
        "pruning_ratio_percent": pruning_ratio_percent(parameters, teacher),
        "plain_pruning_ratio_percent": pruning_ratio_percent(student, teacher),
        "pruning_ratio_cost_points": pruning_ratio_cost_points(parameters, student, teacher),
        **share,
    }


def _projector_parameters(network: nn.Module) -> int:
    projector, others = getattr(network, "projector", None), getattr(network, "others", None)
    own = count_parameters(projector) if isinstance(projector, nn.Module) else 0
    further = others if isinstance(others, nn.ModuleList) else ()
    return own + sum(map(_projector_parameters, further))
