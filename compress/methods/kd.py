"""KD: Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean; 2015, arXiv 1503.02531).

L = T^2 * mean_n sum_k p_k log(p_k / q_k), with p = softmax(z_t / T), q = softmax(z_s / T), teacher
and student logits z_t and z_s, temperature T.

Taps: logits of both. T = 4 as in the CRD and SimKD repositories. CRD's equation 20 prints the
cross entropy with p, which has the same gradient and differs by p's entropy; its code has the
divergence, as here. Weights: CRD protocol 0.1 CE + 0.9 KD, SimKD protocol CE + KD. Several
teachers: the mean of their terms. Of segmentation the mean is over the pixels of all images, at the
size of the teacher's logits.

`standardize` is LSKD, Logit Standardization in Knowledge Distillation (Sun et al.; CVPR 2024): z is
replaced by (z - mean) / std over its classes in both networks (`blocks.logits`), so that the
student need not have logits as large as the teacher's. With it `temperature` is 2 unless given (4
otherwise) and all protocols are 0.1 CE + 9 KD, as sunshangquan/logit-standardization-KD has it for
most pairs of CIFAR-100. Its table has T = 3 for vgg13 as a teacher, resnet32x4 -> wrn_16_2 and ->
wrn_40_2, wrn_40_2 -> mobilenetv2 and resnet50 -> mobilenetv2 (KD's weight 1 there), and T = 4 with
a weight of 12 for resnet110 -> resnet20; on ImageNet it is CE + 9 KD. The `soft` term beside other
methods is never standardized.

Paper (SimKD Table 1, best on test): resnet32x4 -> resnet8x4 on CIFAR-100 74.42 +- 0.05. With
standardized logits (README of its repository) 76.62, where KD has 73.33.
Measured here: resnet32x4 -> resnet8x4 on CIFAR-100, 48 epochs, see benchmarks/results/gpu.md; on 20
classes with small networks, see pipelines/simkd_cifar_cpu.yaml.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from compress.data.batch import Batch
from compress.methods.blocks.logits import needs_of_standardized, standardized
from compress.methods.contract import LossWeights, Method, MethodContext, Needs, Views
from compress.precision import in_float32


@in_float32
def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) of softened predictions, mean over the batch and its pixels.

    Args:
        student_logits: (N, K), or of pixels (N, K, h, w).
        teacher_logits: of the same shape.
        temperature: T > 0.

    Returns:
        A scalar >= 0 in float32 or wider, 0 where the logits are equal.
    """
    log_q = log_softmax(student_logits / temperature, dim=1)
    log_p = log_softmax(teacher_logits / temperature, dim=1)
    predictions = log_q.numel() // log_q.shape[1]
    return temperature**2 * kl_div(log_q, log_p, reduction="sum", log_target=True) / predictions


class KD(Method):
    """Soft targets as the method's own term."""

    dense = True
    is_soft_term = True
    student_taps = ("logits",)
    teacher_taps = ("logits",)
    protocols: ClassVar[Mapping[str, LossWeights]] = {
        "crd": LossWeights(ce=0.1, kd=0, method=0.9),
        "simkd": LossWeights(ce=1, kd=0, method=1),
        "segmentation": LossWeights(ce=1, kd=0, method=1),
    }

    def __init__(
        self,
        context: MethodContext,
        *,
        temperature: float | None = None,
        standardize: bool = False,
    ) -> None:
        super().__init__(context)
        if temperature is not None and temperature <= 0:
            raise ValueError(f"temperature is above 0, got {temperature}")
        self.temperature = temperature or (2.0 if standardize else 4.0)
        self.standardize = standardize

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> Needs:
        """See `Method.needs`: standardized logits have weights of their own."""
        weights = LossWeights(ce=0.1, kd=0, method=9)
        return needs_of_standardized(super().needs(arguments), arguments, weights)

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `kd`."""

        def loss(own: Tensor, known: Tensor) -> Tensor:
            if self.standardize:
                own, known = standardized(own), standardized(known)
            return kd_loss(own, known, self.temperature)

        return {"kd": self.soft_loss(student, teachers, loss)}
