"""Distillation methods by name, and their losses as functions of tensors.

A method is a file here, three lines below, a test and a README row. `find_method` also finds a
class of the user's own, in any file or module.

    >>> import torch
    >>> from compress.methods import at_loss, kd_loss
    >>> student, teacher = torch.randn(8, 10, requires_grad=True), torch.randn(8, 10)
    >>> kd_loss(student, teacher, 4.0).backward()
    >>> student.grad.shape
    torch.Size([8, 10])
    >>> at_loss(torch.randn(2, 16, 8, 8), torch.randn(2, 64, 4, 4)).shape  # pooled to one size
    torch.Size([])
"""

from collections.abc import Mapping

from compress.errors import UserError, nearest
from compress.methods.ab import AB, ab_loss
from compress.methods.aekd import AEKD, aekd_loss
from compress.methods.aekd_f import AEKDF, aekd_f_loss
from compress.methods.at import AT, at_loss
from compress.methods.aveg import AVEG, aveg_loss
from compress.methods.ca_mkd import CAMKD, ca_mkd_feature_loss, ca_mkd_loss
from compress.methods.cc import CC, cc_loss
from compress.methods.cocord import (
    CoCoRD,
    cocord_loss,
    cocord_prediction_loss,
)
from compress.methods.contract import (
    LossWeights,
    Method,
    MethodContext,
    Needs,
    NetworkForward,
    OwnOptimizer,
    ParameterGroup,
    Phase,
    PretrainedMethod,
    TeacherContext,
    TeacherForward,
    View,
    Views,
    teacher_context,
)
from compress.methods.crcd import CRCD, crcd_gradient_loss, crcd_loss
from compress.methods.crd import CRD, crd_loss
from compress.methods.cwd import CWD, cwd_loss
from compress.methods.dcd import DCD, dcd_consistency_loss, dcd_contrast_loss, dcd_loss
from compress.methods.deit import DeiT, deit_loss
from compress.methods.dist import DIST, dist_loss
from compress.methods.distpro import DistPro, distpro_loss
from compress.methods.dkd import DKD, dkd_loss
from compress.methods.dlkd import (
    DLKD,
    dlkd_align_loss,
    dlkd_correlation_loss,
    dlkd_loss,
    dlkd_supervised_loss,
)
from compress.methods.dlkd_pixels import (
    DLKDPixels,
    dlkd_pixels_align_loss,
    dlkd_pixels_correlation_loss,
    dlkd_pixels_loss,
)
from compress.methods.ega import EGA, ega_loss
from compress.methods.fitnet import FitNet, fitnet_loss
from compress.methods.fkd import FKD, fkd_loss, fkd_norm_loss
from compress.methods.fsp import FSP, fsp_loss
from compress.methods.ft import FT, ft_loss, paraphraser_loss
from compress.methods.gckt import GCKT, gckt_loss
from compress.methods.ifvd import IFVD, ifvd_loss
from compress.methods.ipwd import IPWD, ipwd_loss, ipwd_weights
from compress.methods.itrd import ITRD, itrd_correlation_loss, itrd_information_loss, itrd_loss
from compress.methods.kd import KD, kd_loss
from compress.methods.lckt import LCKT, lckt_loss
from compress.methods.mlkd import MLKD, mlkd_loss
from compress.methods.none import Alone
from compress.methods.norm import NORM, norm_loss
from compress.methods.norm_crd import NORMCRD
from compress.methods.nst import NST, nst_loss
from compress.methods.ofd import OFD, ofd_loss, ofd_margins
from compress.methods.pkt import PKT, pkt_loss
from compress.methods.reviewkd import ReviewKD, reviewkd_loss
from compress.methods.rkd import RKD, rkd_loss
from compress.methods.seed import SEED, seed_loss
from compress.methods.semckd import SemCKD, semckd_loss
from compress.methods.simkd import SimKD, simkd_loss, simkd_output_loss
from compress.methods.simkd_joint import SimKDJoint
from compress.methods.simkd_plus import SimKDPlus
from compress.methods.simkd_sequential import SimKDSequential
from compress.methods.simkd_v import SimKDV, simkd_v_loss
from compress.methods.skd import SKD, skd_loss, skd_pair_loss, skd_pixel_loss
from compress.methods.sp import SP, sp_loss
from compress.methods.srrl import SRRL, srrl_loss
from compress.methods.sskd import (
    SSKD,
    sskd_head_loss,
    sskd_loss,
    sskd_similarity_loss,
    sskd_turned_loss,
)
from compress.methods.vid import VID, vid_loss
from compress.methods.wcord import WCoRD
from compress.methods.wsld import WSLD, wsld_loss
from compress.models import user_code
from compress.recipe import signatures

__all__ = [
    "METHODS",
    "LossWeights",
    "Method",
    "MethodContext",
    "Needs",
    "NetworkForward",
    "OwnOptimizer",
    "ParameterGroup",
    "Phase",
    "PretrainedMethod",
    "TeacherContext",
    "TeacherForward",
    "View",
    "Views",
    "ab_loss",
    "aekd_f_loss",
    "aekd_loss",
    "at_loss",
    "aveg_loss",
    "ca_mkd_feature_loss",
    "ca_mkd_loss",
    "cc_loss",
    "cocord_loss",
    "cocord_prediction_loss",
    "crcd_gradient_loss",
    "crcd_loss",
    "crd_loss",
    "cwd_loss",
    "dcd_consistency_loss",
    "dcd_contrast_loss",
    "dcd_loss",
    "deit_loss",
    "dist_loss",
    "distpro_loss",
    "dkd_loss",
    "dlkd_align_loss",
    "dlkd_correlation_loss",
    "dlkd_loss",
    "dlkd_pixels_align_loss",
    "dlkd_pixels_correlation_loss",
    "dlkd_pixels_loss",
    "dlkd_supervised_loss",
    "ega_loss",
    "find_method",
    "fitnet_loss",
    "fkd_loss",
    "fkd_norm_loss",
    "fsp_loss",
    "ft_loss",
    "gckt_loss",
    "ifvd_loss",
    "ipwd_loss",
    "ipwd_weights",
    "itrd_correlation_loss",
    "itrd_information_loss",
    "itrd_loss",
    "kd_loss",
    "known_method",
    "lckt_loss",
    "mlkd_loss",
    "norm_loss",
    "nst_loss",
    "ofd_loss",
    "ofd_margins",
    "paraphraser_loss",
    "pkt_loss",
    "reviewkd_loss",
    "rkd_loss",
    "seed_loss",
    "semckd_loss",
    "simkd_loss",
    "simkd_output_loss",
    "simkd_v_loss",
    "skd_loss",
    "skd_pair_loss",
    "skd_pixel_loss",
    "sp_loss",
    "srrl_loss",
    "sskd_head_loss",
    "sskd_loss",
    "sskd_similarity_loss",
    "sskd_turned_loss",
    "teacher_context",
    "vid_loss",
    "wsld_loss",
]

METHODS: Mapping[str, type[Method]] = {
    "none": Alone,
    "kd": KD,
    "ab": AB,
    "aekd": AEKD,
    "aekd_f": AEKDF,
    "at": AT,
    "aveg": AVEG,
    "ca_mkd": CAMKD,
    "cc": CC,
    "cocord": CoCoRD,
    "crcd": CRCD,
    "crd": CRD,
    "cwd": CWD,
    "dcd": DCD,
    "deit": DeiT,
    "dist": DIST,
    "distpro": DistPro,
    "dkd": DKD,
    "dlkd": DLKD,
    "dlkd_pixels": DLKDPixels,
    "ega": EGA,
    "fitnet": FitNet,
    "fkd": FKD,
    "fsp": FSP,
    "ft": FT,
    "gckt": GCKT,
    "ifvd": IFVD,
    "ipwd": IPWD,
    "itrd": ITRD,
    "lckt": LCKT,
    "mlkd": MLKD,
    "norm": NORM,
    "norm_crd": NORMCRD,
    "nst": NST,
    "ofd": OFD,
    "pkt": PKT,
    "reviewkd": ReviewKD,
    "rkd": RKD,
    "seed": SEED,
    "semckd": SemCKD,
    "simkd": SimKD,
    "simkd_joint": SimKDJoint,
    "simkd_plus": SimKDPlus,
    "simkd_sequential": SimKDSequential,
    "simkd_v": SimKDV,
    "skd": SKD,
    "sp": SP,
    "srrl": SRRL,
    "sskd": SSKD,
    "vid": VID,
    "wcord": WCoRD,
    "wsld": WSLD,
}

# Classes of a user's own by name and digest of their file: found once, and again where it changes.
_own: dict[tuple[str, str], type[Method]] = {}


def find_method(name: str) -> type[Method]:
    """The method of a name: one of `METHODS`, or a class of the user's own.

    The latter is named as FILE.py:CLASS or package.module:CLASS, and its code is run. Where the
    name comes from a model file, ask `compress.models.user_code.verify` first.

    Raises:
        UserError: there is no such method, or the class is no method.
    """
    if name in METHODS:
        return METHODS[name]
    if not user_code.needs_trust(name):
        raise UserError(
            f"unknown name '{name}'; known: {', '.join(METHODS)}, or a class of your own as "
            f"FILE.py:CLASS or package.module:CLASS{nearest(name, METHODS)}"
        )
    key = name, user_code.provenance(name)["sha256"]
    if key not in _own:
        _own[key] = _checked(user_code.find(name), name)
    return _own[key]


def known_method(name: str) -> type[Method] | None:
    """The method of a name, or None where `find_method` raises."""
    try:
        return find_method(name)
    except UserError:
        return None


def _checked(found: object, name: str) -> type[Method]:
    """A class of the user's own; refused with a UserError where it is no method."""
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(
            f"'{name}' is no method: expected a class that inherits from compress.methods.Method"
        )
    try:
        signatures.schema(found)
        found.needs({})
    except Exception as error:  # whatever the annotations and `needs` of such a class raise
        kind = type(error).__name__
        raise UserError(
            f"'{name}': its keyword-only arguments and `needs` cannot be read: {kind}: {error}"
        ) from None
    return found
