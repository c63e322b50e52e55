"""Parameters that gain rows as tasks bring classes and words; rows that exist keep their values bit for bit."""

import torch
from torch import Tensor, nn

__all__ = ["grown"]


def grown(parameter: nn.Parameter, rows: int, *, std: float, seed: int) -> nn.Parameter:
    """A new parameter with `rows` rows: the old ones first, then rows drawn from N(0, std^2).

    The draw depends on the seed and on how many rows there were, not on the global generator, so every worker of a run, and a run that
    is resumed, gets the same new rows. Parameters are replaced, so an optimiser must be created after growing.

    Args:
        parameter: (R, ...) what there is.
        rows: how many rows there shall be, at least R.
        std: standard deviation of the new rows.
        seed: of the draw.
    Raises:
        ValueError: fewer rows than there are.
    """
    old = parameter.shape[0]
    if rows < old:
        raise ValueError(f"cannot shrink from {old} rows to {rows}: ids that were given out stay valid for the life of a run.")
    generator = torch.Generator().manual_seed((seed * 1_000_003 + old) % 2**63)
    new: Tensor = torch.randn((rows - old, *parameter.shape[1:]), generator=generator) * std
    joined = torch.cat([parameter.detach(), new.to(parameter)])
    return nn.Parameter(joined, requires_grad=parameter.requires_grad)
