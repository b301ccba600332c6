"""What a network costs: parameters, bytes, multiply-adds, memory, time. Functions of a module."""

from compress.accounting.latency import Latency, measure_latency, protocol
from compress.accounting.macs import MacCount, count_macs
from compress.accounting.memory import peak_activation_bytes
from compress.accounting.pruning import (
    projector_to_student_percent,
    pruning_ratio_cost_points,
    pruning_ratio_percent,
)
from compress.accounting.size import count_parameters, size_bytes

__all__ = [
    "Latency",
    "MacCount",
    "count_macs",
    "count_parameters",
    "measure_latency",
    "peak_activation_bytes",
    "projector_to_student_percent",
    "protocol",
    "pruning_ratio_cost_points",
    "pruning_ratio_percent",
    "size_bytes",
]
