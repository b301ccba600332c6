"""A discriminator of segmentation maps, and the Wasserstein losses that it learns by.

The discriminator of SAGAN (Zhang et al., ICML 2019) as Liu et al. (CVPR 2019) put it to maps of
logits: batch norm; 4x4 convolutions of stride 2 under spectral norm, 64, 128, 256, 512 channels,
leaky ReLU 0.1; self-attention after the third and the fourth; a 4x4 convolution to one channel.
Theirs is for maps of 65 pixels; of smaller ones as many strided convolutions are left out as make
the last map at least 4 pixels, with the attention after the last two of those that stay. The power
iteration of spectral norm is torch's, which starts converged and updates its two vectors in the
other order: the same in the limit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, autograd, nn
from torch.func import functional_call
from torch.nn.functional import batch_norm
from torch.nn.utils.parametrizations import spectral_norm

from compress.data.batch import Batch
from compress.methods.contract import (
    Method,
    MethodContext,
    Needs,
    OwnOptimizer,
    ParameterGroup,
    last_maps,
    only_teacher,
)

_SLOPE = 0.1
_KERNEL = 4
_MOST_LAYERS = 4
PENALTY = 10.0


class SelfAttention(nn.Module):
    """x + gamma * attention over all positions of (N, C, H, W); gamma starts at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 8)
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, maps: Tensor) -> Tensor:
        """See the class."""
        query, key, value = (conv(maps).flatten(2) for conv in (self.query, self.key, self.value))
        attention = (query.transpose(1, 2) @ key).softmax(-1)
        attended: Tensor = (value @ attention.transpose(1, 2)).view_as(maps)
        result: Tensor = self.gamma * attended + maps
        return result


class _BatchStatistics(nn.Module):
    """Batch norm by the statistics of the maps (N, C, H, W) at hand alone.

    A discriminator is never used outside training. The gradient penalty differentiates it twice,
    which batch norms that several processes share do not allow; its methods gather the rows.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """See the class."""
        return batch_norm(maps, None, None, self.weight, self.bias, training=True)


class Discriminator(nn.Module):
    """Logits (N, K, h, w) -> scores (N, 1, h', w'); higher for what looks like a teacher's."""

    def __init__(self, classes: int, side: int, *, width: int = 64) -> None:
        """`side`: the smaller side of the maps.

        Raises:
            ValueError: it is below 8.
        """
        super().__init__()
        layers = min(_MOST_LAYERS, max(0, side // _KERNEL).bit_length() - 1)
        if layers < 1:
            raise ValueError(
                f"the discriminator reads maps of logits of 8 or more pixels, got {side}; give "
                "larger crops, or leave it out with adversary_weight: 0"
            )
        self.norm = _BatchStatistics(classes)
        parts: list[nn.Module] = []
        channels = classes
        for layer in range(layers):
            wider = width * 2**layer
            parts.append(spectral_norm(nn.Conv2d(channels, wider, _KERNEL, 2, 1)))
            parts.append(nn.LeakyReLU(_SLOPE))
            if layer >= layers - 2:
                parts.append(SelfAttention(wider))
            channels = wider
        self.body = nn.Sequential(*parts)
        self.last = nn.Conv2d(channels, 1, _KERNEL)

    def forward(self, logits: Tensor) -> Tensor:
        """See the class."""
        scores: Tensor = self.last(self.body(self.norm(logits)))
        return scores

    def score_fixed(self, logits: Tensor) -> Tensor:
        """The scores, whose gradient reaches the logits and no parameter."""
        fixed: Mapping[str, Tensor] = {k: p.detach() for k, p in self.named_parameters()}
        scores: Tensor = functional_call(self, dict(fixed), (logits,))
        return scores


def discriminator_loss(
    discriminator: Discriminator,
    student_logits: Tensor,
    teacher_logits: Tensor,
    mixture: Tensor,
    *,
    penalty: float = PENALTY,
) -> Tensor:
    """WGAN-GP (Gulrajani et al., NeurIPS 2017), the mean over images; logits get no gradient.

    mean D(s) - mean D(t) + penalty * mean_n (||grad D(m_n)||_2 - 1)^2, m = a t + (1 - a) s.

    Args:
        student_logits: s, (N, K, h, w).
        teacher_logits: t, of the same shape.
        mixture: a, (N,) in 0..1.
    """
    student, teacher = student_logits.detach(), teacher_logits.detach()
    apart = discriminator(student).mean() - discriminator(teacher).mean()
    share = mixture.to(teacher.dtype).view(-1, 1, 1, 1)
    mixed = (share * teacher + (1 - share) * student).requires_grad_()
    (gradient,) = autograd.grad(discriminator(mixed).sum(), mixed, create_graph=True)
    steepness = gradient.flatten(1).norm(dim=1)
    loss: Tensor = apart + penalty * (steepness - 1).square().mean()
    return loss


class AdversarialMethod(Method):
    """A method of which a discriminator of the logits may be part, by its `adversary_weight`.

    Its batch norm relates the images of a batch, so that the method is then coupled.
    """

    dense: ClassVar[bool] = True
    images: ClassVar[bool] = False
    batch_coupled = True
    student_taps = ("logits", "last_map")
    teacher_taps = ("logits", "last_map")

    def __init__(
        self, context: MethodContext, weights: Sequence[float], optimizer: OwnOptimizer
    ) -> None:
        """`weights` of all terms, that of the adversary last."""
        weight = weights[-1]
        if min(weights) < 0 or not any(weights):
            raise ValueError(f"weights are at least 0 and not all 0, got {tuple(weights)}")
        if optimizer.lr <= 0:
            raise ValueError(f"adversary_lr is above 0, got {optimizer.lr}")
        super().__init__(context, self.needs({"adversary_weight": weight}))
        last_maps(context)
        self.adversary_weight = weight
        self.optimizer = optimizer
        self.discriminator: Discriminator | None = None
        if weight:
            logits = only_teacher(context).taps.logits_map
            if logits is None:
                raise ValueError("the discriminator reads logits of pixels")
            self.discriminator = Discriminator(context.num_classes, min(logits.shape[1:]))

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> Needs:
        """See `Method.needs`."""
        coupled = bool(cls.with_defaults(arguments)["adversary_weight"])
        return replace(super().needs(arguments), batch_coupled=coupled)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """The discriminator's, which have an optimiser of their own."""
        if self.discriminator is None:
            return []
        return [ParameterGroup([*self.discriminator.parameters()], optimizer=self.optimizer)]

    def adversary_terms(
        self, student: Tensor, teacher: Tensor, batch: Batch, *, own: float
    ) -> dict[str, Tensor]:
        """The terms `adversary` of the student, and `discriminator`, `own` times its loss."""
        if self.discriminator is None:
            return {}
        with torch.autocast(student.device.type, enabled=False):
            # float32 or wider, whatever the networks run in
            one, other = (z if z.element_size() >= 4 else z.float() for z in (student, teacher))
            score = self.discriminator.score_fixed(one).mean()
            mixture = self.draw(batch, key="mixture")
            loss = discriminator_loss(self.discriminator, one, other, mixture)
        return {"adversary": -self.adversary_weight * score, "discriminator": own * loss}
