"""Distillation methods by name. A method is a file here, a line below, a test and a README row."""

from collections.abc import Mapping

from compress.methods.base import Method
from compress.methods.kd import KD
from compress.methods.none import Alone
from compress.methods.simkd import SimKD

METHODS: Mapping[str, type[Method]] = {
    "none": Alone,
    "kd": KD,
    "simkd": SimKD,
}
