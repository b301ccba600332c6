"""DLKD: Dual-Level Knowledge Distillation via Knowledge Alignment and Correlation.

Ding et al., IEEE TNNLS, 2022 (issue 2024); its released code, ifding/DLKD, calls it MLKD. Each
image is shown in four turns, by 0, 90, 180 and 270 degrees, mirrored all or none and cropped each
for itself; the student runs on all 4N images of a batch of N at once. With pooled features f_s
(4N, C_s) and f_t (4N, C_t), L = l_1 L_align + l_2 L_corr + l_3 L_sup:

* L_align = mean over 4N of 2 - 2 cos(h(f_s), f_t), with h linear to 16 C_t, batch norm, ReLU,
  linear to C_t, as the released code and eq. 13 have it; `alignment: l2` is eq. 3, the mean of
  |h(f_s) - f_t|^2.
* L_corr = mean over the 3N turned images a of KL(p_t(a) || p_s(a)), p(a) the softmax over the N
  images n as they are of cos(f(a), f(n)) / 0.5; the teacher's raw features, the student's through
  a head of its own (linear to C_s, batch norm, ReLU, linear to C_s). Eq. 6 prints the cross
  entropy: the gradient is the same.
* L_sup = mean over anchors i of the mean over j of the same label of -log(e^(z_i z_j / 0.07) /
  sum_k e^(z_i z_k / 0.07)), z linear embeddings (128) of both networks, both trained, of length 1.
  `pairs: all` is the released code: anchors, j and k are all 8 N embeddings, without i itself.
  `pairs: across` is the text at eq. 7: an anchor of one network against the other network's 4N.
  The code adds 1e-7 to the sum over k, relative to its largest summand, i itself included; here
  nothing is added.

Cross entropy and KD are on the images as they are. `weighting: text` is l = 10, 20, 0.5, as the
paper and the script for ImageNet have it, `released` that of the script for CIFAR-100: 20, 50, 1.
`labels: false` is the distillation of teachers that never saw a label: L_align + L_corr alone,
without cross entropy; the classifier then learns nothing, and k nearest neighbours judge.

Taps: pooled vectors. Widths and temperatures are those of text and code; Table VII by
`hidden_ratio`, Table VIII by weights of 0. On ImageNet the text turns images, too; the released
loader takes other crops with colour jitter in place of turned ones, which is not offered here.

Paper (Table I; its teachers are those of SSKD): resnet32x4 -> resnet8x4 on CIFAR-100 77.11.
Measured here (benchmarks/results/contrast_cpu.md; resnet20 -> resnet8, 20 classes, 4 epochs, 3
seeds): 44.65; KD 43.35, CRD 36.13.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, kl_div, normalize

from compress.data.batch import Batch
from compress.methods.blocks.heads import two_layer_head
from compress.methods.blocks.turns import TURNED_VIEWS, TURNS, of_all_turns, turned_cosines
from compress.methods.contract import (
    LossWeights,
    Method,
    MethodContext,
    Needs,
    Views,
    pooled_widths,
    published,
)
from compress.precision import in_float32
from compress.taps import Taps

Alignment = Literal["cosine", "l2"]
Pairs = Literal["all", "across"]
# Of alignment, correlation and the supervised term.
WEIGHTINGS: Mapping[str, tuple[float, float, float]] = {
    "text": (10, 20, 0.5),
    "released": (20, 50, 1),
}


@in_float32
def dlkd_align_loss(student: Tensor, teacher: Tensor, *, alignment: Alignment = "cosine") -> Tensor:
    """L_align of h(f_s) and f_t, both (M, C_t): a scalar >= 0 in float32 or wider."""
    if alignment == "l2":
        return (student - teacher).square().sum(1).mean()
    return (2 - 2 * cosine_similarity(student, teacher)).mean()


@in_float32
def dlkd_correlation_loss(
    student: Tensor, teacher: Tensor, images: int, *, temperature: float = 0.5
) -> Tensor:
    """L_corr.

    Args:
        student: features (M, C_s) of N images as they are, then of the turned ones.
        teacher: features (M, C_t) of the same, constants.
        images: N.

    Returns:
        A scalar >= 0 in float32 or wider, mean over the M - N turned images.
    """
    own, known = (
        turned_cosines(rows, images) / temperature for rows in (student, teacher.detach())
    )
    return kl_div(own.log_softmax(1), known.softmax(1), reduction="batchmean")


@in_float32
def dlkd_supervised_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.07,
    pairs: Pairs = "all",
) -> Tensor:
    """L_sup.

    Args:
        student: embeddings (M, D); normalised here.
        teacher: embeddings (M, D) of the same images; normalised here.
        labels: (M,).

    Returns:
        A scalar > 0 in float32 or wider, mean over the 2 M anchors.
    """
    rows = normalize(torch.cat([student, teacher]))
    labels = torch.cat([labels, labels])
    count = len(rows)
    own = torch.arange(count, device=rows.device)
    if pairs == "across":
        is_seen = (own[:, None] < count // 2) != (own < count // 2)
    else:
        is_seen = own[:, None] != own
    scores = (rows @ rows.t() / temperature).masked_fill(~is_seen, float("-inf"))
    log_shares = scores.log_softmax(1).masked_fill(~is_seen, 0)  # 0 times infinity is no number
    is_positive = is_seen & (labels[:, None] == labels)
    means = (log_shares * is_positive).sum(1) / is_positive.sum(1)
    return -means.mean()


def dlkd_loss(
    aligned: Tensor,
    correlated: Tensor,
    embedded: tuple[Tensor, Tensor],
    teacher: Tensor,
    labels: Tensor,
    *,
    weights: tuple[float, float, float] = WEIGHTINGS["text"],
) -> Tensor:
    """L, of what the three heads make of the student, as the terms take it; labels (N,)."""
    turned = labels.repeat(len(teacher) // len(labels))
    terms = (
        dlkd_align_loss(aligned, teacher),
        dlkd_correlation_loss(correlated, teacher, len(labels)),
        dlkd_supervised_loss(*embedded, turned),
    )
    total: Tensor = sum(w * term for w, term in zip(weights, terms, strict=True))  # type: ignore[assignment]
    return total


class DLKD(Method):
    """Three heads on pooled vectors of four turns, see the module's docstring."""

    views = TURNED_VIEWS
    batch_coupled = True  # but for alignment alone
    student_taps = ("pooled",)
    teacher_taps = ("pooled",)
    protocols: ClassVar[Mapping[str, LossWeights]] = published(1)

    def __init__(
        self,
        context: MethodContext,
        *,
        weighting: Literal["text", "released"] = "text",
        align_weight: float | None = None,
        correlation_weight: float | None = None,
        supervised_weight: float | None = None,
        labels: bool = True,
        alignment: Alignment = "cosine",
        pairs: Pairs = "all",
        correlation_temperature: float = 0.5,
        supervised_temperature: float = 0.07,
        hidden_ratio: float = 16,
        feature_width: int = 128,
    ) -> None:
        arguments = {
            "weighting": weighting,
            "align_weight": align_weight,
            "correlation_weight": correlation_weight,
            "supervised_weight": supervised_weight,
            "labels": labels,
        }
        choices = {"alignment": (alignment, ("cosine", "l2")), "pairs": (pairs, ("all", "across"))}
        _refuse_impossible(arguments, choices)
        super().__init__(context, self.needs(arguments))
        student, teacher = pooled_widths(context)
        for name, temperature in (
            ("correlation_temperature", correlation_temperature),
            ("supervised_temperature", supervised_temperature),
        ):
            if temperature <= 0:
                raise ValueError(f"{name} is above 0, got {temperature}")
        hidden = round(hidden_ratio * teacher)
        if hidden < 1:
            raise ValueError(f"hidden_ratio leaves no hidden layer: {hidden_ratio} x {teacher}")
        self.align_weight, self.correlation_weight, self.supervised_weight = _weights(arguments)
        self.alignment: Alignment = alignment
        self.pairs: Pairs = pairs
        self.correlation_temperature = correlation_temperature
        self.supervised_temperature = supervised_temperature
        self.heads = nn.ModuleDict()
        if self.align_weight:
            self.heads["align"] = two_layer_head(student, hidden, teacher)
        if self.correlation_weight:
            self.heads["correlation"] = two_layer_head(student, student, student)
        if self.supervised_weight:
            self.heads["supervised"] = nn.Linear(student, feature_width)
            self.teacher_embedding = nn.Linear(teacher, feature_width)

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> Needs:
        """See `Method.needs`: alignment relates no images, and without labels there is no CE."""
        given = cls.with_defaults(arguments)
        _, correlation, supervised = _weights(given)
        alone = {key: LossWeights(ce=0, kd=0, method=1) for key in cls.protocols}
        protocols = cls.protocols if given["labels"] else alone
        coupled = bool(correlation or supervised)
        return Needs(cls.views, coupled, cls.teacher_taps, protocols, bool(supervised))

    def extend(self, student: Taps) -> Taps:
        """Add what each head makes of the pooled vectors, by the name of its term."""
        pooled = student.tensor("pooled")
        made = {name: head(pooled) for name, head in self.heads.items()}
        return Taps({**student, **made})

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The terms `align`, `correlation` and `supervised`, without those of weight 0."""
        teacher, terms = of_all_turns(teachers[0], "pooled"), {}
        if self.align_weight:
            loss = dlkd_align_loss(
                of_all_turns(student, "align"), teacher, alignment=self.alignment
            )
            terms["align"] = self.align_weight * loss
        if self.correlation_weight:
            loss = dlkd_correlation_loss(
                of_all_turns(student, "correlation"),
                teacher,
                len(batch.labels),
                temperature=self.correlation_temperature,
            )
            terms["correlation"] = self.correlation_weight * loss
        if self.supervised_weight:
            loss = dlkd_supervised_loss(
                of_all_turns(student, "supervised"),
                self.teacher_embedding(teacher),
                batch.labels.repeat(len(TURNS)),
                temperature=self.supervised_temperature,
                pairs=self.pairs,
            )
            terms["supervised"] = self.supervised_weight * loss
        return terms


def _weights(arguments: Mapping[str, Any]) -> tuple[float, float, float]:
    """Weights of the three terms; of an unknown weighting those of the text."""
    names = ("align_weight", "correlation_weight", "supervised_weight")
    usual = WEIGHTINGS.get(str(arguments["weighting"]), WEIGHTINGS["text"])
    given = (arguments[name] for name in names)
    align, correlation, supervised = (
        u if g is None else g for u, g in zip(usual, given, strict=True)
    )
    return align, correlation, supervised if arguments["labels"] else 0


def _refuse_impossible(
    arguments: Mapping[str, Any], choices: Mapping[str, tuple[str, tuple[str, ...]]]
) -> None:
    for name, (given, known) in {
        "weighting": (arguments["weighting"], tuple(WEIGHTINGS)),
        **choices,
    }.items():
        if given not in known:
            raise ValueError(f"{name} is {' or '.join(known)}, got {given}")
    weights = _weights(arguments)
    if min(weights) < 0:
        raise ValueError(f"weights are at least 0, got {', '.join(map(str, weights))}")
    if not any(weights):
        raise ValueError("every weight of the method is 0: nothing is left of it")
