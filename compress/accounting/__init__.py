"""Costs of a network: parameters, bytes, multiply-adds, memory, time.

    >>> from compress.accounting import count_macs, count_parameters, pruning_ratio_percent
    >>> from compress.models import build
    >>> teacher, student = (build(name, num_classes=100) for name in ("resnet32x4", "resnet8x4"))
    >>> count_parameters(student), count_macs(student, (3, 32, 32)).macs
    (1233540, 177071104)
    >>> round(pruning_ratio_percent(count_parameters(student), count_parameters(teacher)), 2)
    83.41

`account_pair` builds the networks itself, from names, and counts what a distillation method ships;
it is also the command `python -m compress.accounting`.
"""

from typing import TYPE_CHECKING

from compress import import_lazily
from compress.accounting.costs import network_costs, pruning_columns
from compress.accounting.latency import (
    LatencyMeasurement,
    measure_latency,
    protocol,
    speedup_percent,
)
from compress.accounting.macs import MacCount, count_macs
from compress.accounting.memory import peak_activation_bytes, peak_step_bytes
from compress.accounting.pruning import (
    projector_to_student_percent,
    pruning_ratio_cost_points,
    pruning_ratio_percent,
)
from compress.accounting.size import count_parameters, size_bytes

if TYPE_CHECKING:
    from compress.accounting.pairs import account_pair

__all__ = [
    "LatencyMeasurement",
    "MacCount",
    "account_pair",
    "count_macs",
    "count_parameters",
    "measure_latency",
    "network_costs",
    "peak_activation_bytes",
    "peak_step_bytes",
    "projector_to_student_percent",
    "protocol",
    "pruning_columns",
    "pruning_ratio_cost_points",
    "pruning_ratio_percent",
    "size_bytes",
    "speedup_percent",
]

# Importing every method takes seconds.
__getattr__ = import_lazily(__name__, {"account_pair": "compress.accounting.pairs"})
