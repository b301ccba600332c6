"""Distillation methods by name. A method is a file here, a line below, a test and a README row."""

from collections.abc import Mapping

from compress.methods.ab import AB
from compress.methods.at import AT
from compress.methods.cc import CC
from compress.methods.contract import Method
from compress.methods.crd import CRD
from compress.methods.fitnet import FitNet
from compress.methods.fsp import FSP
from compress.methods.ft import FT
from compress.methods.kd import KD
from compress.methods.none import Alone
from compress.methods.nst import NST
from compress.methods.pkt import PKT
from compress.methods.rkd import RKD
from compress.methods.semckd import SemCKD
from compress.methods.simkd import SimKD
from compress.methods.sp import SP
from compress.methods.srrl import SRRL
from compress.methods.vid import VID

METHODS: Mapping[str, type[Method]] = {
    "none": Alone,
    "kd": KD,
    "ab": AB,
    "at": AT,
    "cc": CC,
    "crd": CRD,
    "fitnet": FitNet,
    "fsp": FSP,
    "ft": FT,
    "nst": NST,
    "pkt": PKT,
    "rkd": RKD,
    "semckd": SemCKD,
    "simkd": SimKD,
    "sp": SP,
    "srrl": SRRL,
    "vid": VID,
}
