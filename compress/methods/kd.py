"""KD: Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean; 2015, arXiv 1503.02531).

L = T^2 * mean_n sum_k p_k log(p_k / q_k), with p = softmax(z_t / T), q = softmax(z_s / T), teacher
and student logits z_t and z_s, temperature T.

Taps: logits of both. T = 4 as in the CRD and SimKD repositories. CRD's equation 20 prints the
cross entropy with p, which has the same gradient and differs by p's entropy; its code has the
divergence, as here. Weights: CRD protocol 0.1 CE + 0.9 KD, SimKD protocol CE + KD. Several
teachers: the mean of their terms. Of segmentation the mean is over the pixels of all images, at the
size of the teacher's logits.

Paper (SimKD Table 1, best on test): resnet32x4 -> resnet8x4 on CIFAR-100 74.42 +- 0.05.
Measured here on 20 classes with small networks: see pipelines/simkd_cifar_cpu.yaml.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from compress.data.batch import Batch
from compress.methods.contract import LossWeights, Method, MethodContext, Views
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

    def __init__(self, context: MethodContext, *, temperature: float = 4.0) -> None:
        super().__init__(context)
        if temperature <= 0:
            raise ValueError(f"temperature is above 0, got {temperature}")
        self.temperature = temperature

    def forward(self, student: Views, teachers: Sequence[Views], batch: Batch) -> dict[str, Tensor]:
        """The term `kd`."""
        return {
            "kd": self.soft_loss(student, teachers, lambda s, t: kd_loss(s, t, self.temperature))
        }
