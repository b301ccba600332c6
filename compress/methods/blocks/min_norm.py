"""Weights of several losses whose gradients disagree: the shortest of their mixtures.

min over a of |sum_i a_i g_i|^2 with sum_i a_i = 1 and 0 <= a_i <= C, a quadratic program with as
many unknowns as losses. Its minimum is a direction along which no loss rises, where C allows it
(multiple-gradient descent; Desideri, 2012; Sener and Koltun, 2018).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

# Squared lengths are longer by this share: of several minima, as two equal gradients have, there
# is then one, of even weights. Gradients of length 0 get the second, relative to the longest.
_RIDGE, _LEAST_RIDGE = 1e-10, 1e-20
_TOLERANCE = 1e-13  # of a multiplier's sign, relative to the terms of its sum
_SMALLEST_LENGTH = 1e-12  # relative to the largest, for the division by lengths


@torch.no_grad()
def min_norm_weights(gradients: Tensor, largest: float, *, normalised: bool = False) -> Tensor:
    """The weights of the shortest mixture of gradients.

    Their common scale does not matter. Computed in float64; a step on a GPU waits for the CPU here.

    Args:
        gradients: g, (m, ...), one for each loss.
        largest: C; it counts as 1 / m where it is less, since the weights could not sum to 1.
        normalised: mix g_i / |g_i| instead, and return a_i / |g_i|, scaled to sum to 1 (no longer
            bounded by C).

    Returns:
        a, (m,) in float64, on the gradients' device.
    """
    rows = gradients.detach().flatten(1).double()
    lengths = rows.norm(dim=1)
    lengths = lengths.clamp(min=max(_SMALLEST_LENGTH * float(lengths.max()), 1e-300))
    if normalised:
        rows = rows / lengths[:, None]
    on_cpu = minimise_on_simplex((rows @ rows.t()).cpu().numpy(), largest)
    weights: Tensor = torch.from_numpy(on_cpu).to(rows.device)
    if not normalised:
        return weights
    weights /= lengths
    weights /= weights.sum()
    return weights


def minimise_on_simplex(gram: Any, largest: float) -> Any:
    """The a that minimises a' Q a with sum a = 1 and 0 <= a_i <= C, by an active-set method.

    Every iterate is feasible; on a face of the feasible set the minimum solves a linear system.
    Starting from equal weights, a step towards it ends at the first bound that it meets, whose
    weight then stays there until its multiplier has the wrong sign. The first such weight is
    freed (Bland's rule), so that no set of bounds comes twice.

    Args:
        gram: Q, symmetric and positive semidefinite, (m, m).
        largest: C > 0.

    Returns:
        float64 (m,).
    """
    count = len(gram)
    weights, scale = np.full(count, 1 / count), float(gram.diagonal().max())
    if largest * count <= 1 or not scale > 0:
        return weights
    quadratic = np.asarray(gram, np.float64) / scale
    quadratic += np.diag(_RIDGE * quadratic.diagonal() + _LEAST_RIDGE)
    active = np.zeros(count, int)  # -1 at 0, 1 at C, 0 free
    for _ in range(100 * count):
        target, level = _minimise_on_face(quadratic, weights, active)
        move = target - weights
        ends = np.where(move < 0, 0.0, largest)
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = np.where((active == 0) & (move != 0), (ends - weights) / move, np.inf)
        first = int(steps.argmin())
        if steps[first] < 1:
            weights = weights + steps[first] * move
            weights[first], active[first] = ends[first], 1 if move[first] > 0 else -1
            continue
        weights = target
        rounding = _TOLERANCE * (np.abs(quadratic) @ weights)
        wrong = (quadratic @ weights - level) * active > rounding
        if not wrong.any():
            break
        active[int(wrong.argmax())] = 0
    return weights.clip(0, largest)


def _minimise_on_face(quadratic: Any, weights: Any, active: Any) -> tuple[Any, float]:
    """The best weights with those at a bound as they are, and the sum's multiplier."""
    free = active == 0
    count = int(free.sum())
    pull = quadratic @ weights
    if not count:
        return weights, float(pull[active > 0].max())
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = quadratic[np.ix_(free, free)]
    system[:count, count], system[count, :count] = -1, 1
    fixed = quadratic[np.ix_(free, ~free)] @ weights[~free]
    solution = np.linalg.solve(system, np.append(-fixed, weights[free].sum()))
    target = weights.copy()
    target[free] = solution[:count]
    return target, float(solution[count])
