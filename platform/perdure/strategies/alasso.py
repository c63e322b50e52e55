"""ALASSO: the earlier tasks' loss is approximated from the side that training saw, and overestimated on the other one.

Park, Hong, Han and Lee, "Continual learning by asymmetric loss approximation with single-side overestimation", ICCV 2019, and the
authors' published program; a baseline of Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 5 and 6.
"""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.losses import asymmetric_surrogate
from perdure.strategies.protector import DEFAULT_PULL, Protector, Share, leading, padded
from perdure.strategies.ranking import DEFAULT_RANKING, PositiveFloat, Ranking, Weight
from perdure.strategies.strategy import Examples, TaskContext

__all__ = ["ALASSO"]

AtLeastOne = Annotated[float, Field(ge=1, allow_inf_nan=False)]
Smoothing = Annotated[float, Field(gt=0, le=1)]


class ALASSO(Protector):
    """L = ranking terms + weight * Q(theta), Q the asymmetric surrogate of all earlier tasks' loss with a and eps.

    While a task is learned, each parameter collects what its own moves took off the loss, S = sum over steps of -g d theta, g the
    gradient of the ranking terms alone. After the task, with d = theta* - theta from the new optimum to the anchor:

        W = max( eta (S - c' Q'(theta)) / (d^2 + xi) + (1 - eta) W_old,  W_old ),        side = sign(d),        theta* = theta

    S - c' Q'(theta) is what ranking terms and surrogate together lost by the move, so that W d^2 is what going back would cost; Q' is
    the old surrogate with a' and eps', which need not be those of the penalty. W is in units of the loss, so a weight of 1 is the
    earlier tasks' loss itself, by this approximation.

    Deviations: the bound of `Protector` (None: none, as in the thesis, weight 0.2). A parameter that did not move was seen on no side
    (the program says: from below). c' is an option of its own, where the paper ties it to the weight by default. Rows that a later task
    brings are free, also of eps. S takes the gradient as it is before clipping, averaged over the workers; AdamW's decay is a move too.
    """

    name = "alasso"
    term = "alasso"
    parts = ("importance", "anchor", "side")
    passing = ("path",)

    def __init__(
        self,
        *,
        weight: Weight = 1.0,
        overestimation: AtLeastOne = 1.8,
        floor: Weight = 1e-6,
        path_weight: Weight = 1.0,
        path_overestimation: AtLeastOne = 1.0,
        path_floor: Weight = 0.0,
        smoothing: Smoothing = 1.0,
        damping: PositiveFloat = 1e-3,
        max_share: Share | None = DEFAULT_PULL,
        ranking: Ranking = DEFAULT_RANKING,
    ) -> None:
        """A new strategy.

        Args:
            weight: c, of the surrogate in the loss.
            overestimation: a of the surrogate, on the side that was not seen.
            floor: eps of the surrogate.
            path_weight: c', of the old surrogate when a task is consolidated.
            path_overestimation: a'.
            path_floor: eps'.
            smoothing: eta.
            damping: xi, in units of a squared parameter.
            max_share: see `Protector`.
            ranking: the terms that a task is learned with.
        """
        super().__init__(weight=weight, max_share=max_share, ranking=ranking)
        self._shape = {"overestimation": overestimation, "floor": floor}
        self._path_shape = {"overestimation": path_overestimation, "floor": path_floor}
        self._path_weight = path_weight
        self._smoothing = smoothing
        self._damping = damping
        self._before: dict[str, tuple[Tensor, Tensor]] = {}  # (gradient, parameter) before the optimiser moves

    def begin_task(self, encoder: Encoder, task: TaskContext) -> None:
        """A path of its own."""
        self.memory["path"] = {}
        super().begin_task(encoder, task)

    def begin_training(self, encoder: Encoder) -> None:
        """The path starts here: rows that are new are anchored where they begin."""
        super().begin_training(encoder)
        for name, parameter in encoder.named_parameters():
            if parameter.requires_grad:
                anchor = parameter.detach().clone()
                if name in self.memory["anchor"]:
                    leading(anchor, self.memory["anchor"][name]).copy_(self.memory["anchor"][name])
                self.memory["anchor"][name] = anchor
                self.memory["path"][name] = torch.zeros_like(anchor)

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Q(theta)."""
        return torch.stack([self._surrogate(name, each, self._shape).sum() for name, each in parameters.items()]).sum()

    def before_step(self, encoder: Encoder) -> None:
        """Note the gradient of the ranking terms and where the step starts, then add the penalty's gradient."""
        self._before = {
            name: (parameter.grad.detach().clone(), parameter.detach().clone())
            for name, parameter in encoder.named_parameters()
            if parameter.grad is not None and name in self.memory["path"]
        }
        super().before_step(encoder)

    def after_step(self, encoder: Encoder) -> None:
        """S -= g d theta."""
        parameters = dict(encoder.named_parameters())
        for name, (gradient, before) in self._before.items():
            self.memory["path"][name] -= gradient * (parameters[name].detach() - before)
        self._before = {}

    def consolidate(self, encoder: Encoder, examples: Examples) -> None:
        """W, side and anchor of all tasks so far.

        Raises:
            ValueError: no step of this task was seen.
        """
        if not any(bool(path.any()) for path in self.memory["path"].values()):
            raise ValueError(
                "alasso weighs parameters by the path of training, and saw no step of this task: let it learn the first task itself "
                "(no train.start_from another strategy's run), and give every task at least one epoch"
            )
        if not self._placed:
            self._place(encoder)
        parameters = dict(encoder.named_parameters())
        for name, path in self.memory["path"].items():
            self._consolidate(name, parameters[name].detach(), path)
        self.memory["path"] = {}

    def _consolidate(self, name: str, parameter: Tensor, path: Tensor) -> None:
        importance, anchor = self.memory["importance"].get(name), self.memory["anchor"][name]
        old = padded(importance, parameter)
        surrogate = torch.zeros_like(parameter)
        if importance is not None:
            surrogate = padded(self._surrogate(name, leading(parameter, importance), self._path_shape), parameter)
        back = anchor - parameter
        gained = (path - self._path_weight * surrogate) / (back.square() + self._damping)
        self.memory["importance"][name] = torch.maximum(self._smoothing * gained + (1 - self._smoothing) * old, old)
        self.memory["side"][name] = back.sign()
        self.memory["anchor"][name] = parameter.clone()

    def _surrogate(self, name: str, parameter: Tensor, shape: Mapping[str, float]) -> Tensor:
        """Q of the R leading rows of one parameter, entry by entry."""
        importance = self.memory["importance"][name]
        anchor = leading(self.memory["anchor"][name], importance)
        return asymmetric_surrogate(parameter, anchor, importance, self.memory["side"][name], **shape)
