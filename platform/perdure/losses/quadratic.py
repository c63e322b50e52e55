"""What it costs to move a parameter away from where it was good for the earlier tasks.

Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017, Eq. (3) (EWC); Aljundi et al., "Memory Aware
Synapses", ECCV 2018, Eq. (4) (MAS: the same form); Park et al., "Continual learning by asymmetric loss approximation with
single-side overestimation", ICCV 2019, Eq. (8) (ALASSO). All functions work on one parameter tensor of any shape.
"""

import torch
from torch import Tensor

__all__ = ["asymmetric_surrogate", "quadratic_penalty"]


def quadratic_penalty(parameter: Tensor, anchor: Tensor, importance: Tensor) -> Tensor:
    """A spring to the anchor on every entry, as stiff as the entry is important.

        L = 1/2 sum_k F_k (theta_k - theta*_k)^2

    Args:
        parameter: theta, any shape.
        anchor: theta*, the same shape; no gradient flows into it.
        importance: F, the same shape, 0 or more; no gradient flows into it.
    Returns:
        () the sum over all entries.
    Raises:
        ValueError: shapes differ.
    """
    _refuse_shapes("quadratic_penalty", parameter, anchor, importance)
    return 0.5 * (importance.detach() * (parameter - anchor.detach()).square()).sum()


def asymmetric_surrogate(
    parameter: Tensor, anchor: Tensor, importance: Tensor, side: Tensor, *, overestimation: float, floor: float
) -> Tensor:
    """What the earlier tasks' loss is believed to rise by, entry by entry: steeper where nobody has looked.

        Q_k(theta) = W_k d_k^2              on the side that training came from, d_k s_k > 0
                     (a W_k + eps) d_k^2    on the other side,                                  d = theta - theta*

    Training came to theta* from one side; what the loss does on the other one was never seen, so it is overestimated there. An entry
    that never moved (s_k = 0) was seen on no side.

    Args:
        parameter: theta, any shape.
        anchor: theta*, the same shape; no gradient flows into it.
        importance: W, the same shape, 0 or more; no gradient flows into it.
        side: s, the same shape: 1 where training came from above theta*, -1 from below, 0 where it did not move.
        overestimation: a, 1 or more.
        floor: eps, 0 or more, in units of W.
    Returns:
        the shape of theta; the penalty is the sum.
    Raises:
        ValueError: shapes differ, a below 1, or eps below 0.
    """
    _refuse_shapes("asymmetric_surrogate", parameter, anchor, importance, side)
    if overestimation < 1 or floor < 0:
        raise ValueError(f"asymmetric_surrogate: overestimation={overestimation}, floor={floor}; it needs a >= 1 and eps >= 0.")
    moved = parameter - anchor.detach()
    observed = moved.detach() * side > 0
    return torch.where(observed, importance.detach(), overestimation * importance.detach() + floor) * moved.square()


def _refuse_shapes(loss: str, parameter: Tensor, *others: Tensor) -> None:
    if any(other.shape != parameter.shape for other in others):
        found = ", ".join(str(tuple(each.shape)) for each in (parameter, *others))
        raise ValueError(f"{loss}: got tensors of the shapes {found}; they must be alike.")
