"""Protection: what strategies share that hold parameters near where they were, each as firmly as it matters.

Letters: R rows of a parameter that were there when it was measured, out of those that it has by now.
"""

import logging
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.records import Embedded
from perdure.strategies.distiller import Share
from perdure.strategies.ranking import DEFAULT_RANKING, Ranking
from perdure.strategies.strategy import Strategy, TaskContext

__all__ = ["DEFAULT_PULL", "Protector", "Share", "leading", "padded"]

log = logging.getLogger(__name__)

DEFAULT_PULL = 0.02  # on an entry, of how hard the ranking terms pull at a typical entry of the same parameter in one step


class Protector(Strategy):
    """L = ranking terms + weight * `penalty` of the parameters, as soon as there is something to protect.

    What is kept of each parameter, by its name, stands in `memory`: at least its `importance` and its `anchor`, where it was. Rows that
    came later (classes, words) are not in it and are free. BatchNorm's running statistics are no parameters and are not protected
    (`train.freeze_batch_norm` holds them).

    The penalty depends on the parameters alone, so its gradient is not sent through the network: `before_step` adds it to the gradients
    of the ranking terms, which are averaged over the workers by then. There no entry of it may exceed `max_share` times the root mean
    square of the ranking terms' gradient over the same parameter (None: no bound), because a weight that protects one stream freezes
    another, and because a spring that is too stiff for the learning rate does not settle but swings ever wider: see decision 10, which
    this carries over from embeddings to parameters. The term in the log is the penalty before the bound.
    """

    parts: ClassVar[tuple[str, ...]] = ("importance", "anchor")  # of the memory, for every parameter in it
    passing: ClassVar[tuple[str, ...]] = ()  # parts that are there while a task is learned only
    term: ClassVar[str] = ""  # the penalty's name in the log

    def __init__(self, *, weight: float, max_share: float | None, ranking: Ranking = DEFAULT_RANKING) -> None:
        super().__init__(ranking=ranking)
        self._weight = weight
        self._max_share = max_share
        self.memory: dict[str, dict[str, Tensor]] = {part: {} for part in (*self.parts, *self.passing)}
        self._placed = False
        self._pull: dict[str, Tensor] = {}  # the penalty's gradient at the parameters of this step
        self._task_index = 0

    def begin_task(self, encoder: Encoder, task: TaskContext) -> None:
        """Bring the memory to where the encoder is."""
        super().begin_task(encoder, task)
        self._task_index = task.index
        self._pull = {}
        self._place(encoder)
        self._placed = False  # the layout of the parameters may change yet
        if task.index > 0 and not self.memory["importance"]:
            log.warning("%s: task %d begins with nothing to protect: no task before it was learned by this strategy", self.name, task.index)

    def loss_terms(self, encoder: Encoder, batch: Embedded) -> dict[str, Tensor]:
        """The ranking terms, and the weighted penalty as a number without gradient; see the class."""
        terms = super().loss_terms(encoder, batch)
        if not self._placed:
            self._place(encoder)
        if not self.memory["importance"]:
            return terms
        parameters = self._protected(encoder)
        with torch.enable_grad():
            penalty = self._weight * self.penalty(parameters)
            pulls = torch.autograd.grad(penalty, list(parameters.values()))
        self._pull = dict(zip(parameters, pulls, strict=True))
        return terms | {self.term: penalty.detach()}

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """() what it costs to have moved the R leading rows of each protected parameter; a strategy's own part."""
        raise NotImplementedError

    def before_step(self, encoder: Encoder) -> None:
        """Add the penalty's gradient, within its bound."""
        for name, parameter in encoder.named_parameters():
            if name in self._pull and parameter.grad is not None:
                gradient = leading(parameter.grad, self._pull[name])
                gradient += self._bounded(self._pull[name], gradient)
        self._pull = {}

    def _bounded(self, pull: Tensor, gradient: Tensor) -> Tensor:
        """The pull on one parameter, no entry of it above the share of the root mean square of the ranking terms' gradient."""
        if self._max_share is None:
            return pull
        limit = self._max_share * gradient.square().mean().sqrt()
        return pull.clamp(-limit, limit)

    def state_dict(self) -> dict[str, Tensor]:
        """The memory, as STRATEGY.PART.PARAMETER."""
        return {f"{self.name}.{part}.{name}": value for part, values in self.memory.items() for name, value in values.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `Strategy`.

        Raises:
            ValueError: it was written by another strategy, or a part of it is missing.
        """
        memory: dict[str, dict[str, Tensor]] = {part: {} for part in self.memory}
        for key, value in state.items():
            owner, _, rest = key.partition(".")
            part, _, name = rest.partition(".")
            if owner != self.name or part not in memory or not name:
                raise ValueError(
                    f"{self.name} keeps {self.name}.PART.PARAMETER with the parts {', '.join(memory)}, but got '{key}': "
                    "was this saved by another strategy?"
                )
            memory[part][name] = value.clone()
        for name in memory["importance"]:
            missing = [part for part in self.parts if name not in memory[part]]
            if missing:
                raise ValueError(f"{self.name}: the state has the importance of '{name}', but not its {missing[0]}; it is incomplete")
        self.memory = memory
        self._placed = False

    def _protected(self, encoder: Encoder) -> dict[str, Tensor]:
        """The R leading rows of every protected parameter, as leaves of a graph of their own."""
        parameters = dict(encoder.named_parameters())
        importance = self.memory["importance"]
        return {name: leading(parameters[name].detach(), value).requires_grad_() for name, value in importance.items()}

    def _place(self, encoder: Encoder) -> None:
        """The memory on the device and in the layout of the parameters, so that a resumed run adds in the same order.

        Raises:
            ValueError: the encoder has no such parameter, or it has another shape.
        """
        parameters = dict(encoder.named_parameters())
        for part in self.memory.values():
            for name, value in part.items():
                like = leading(parameters[name].detach(), value) if name in parameters else None
                if like is None or like.shape != value.shape:
                    found = "no such parameter" if like is None else f"{tuple(parameters[name].shape)}"
                    raise ValueError(
                        f"{self.name}: the state protects '{name}' {tuple(value.shape)}, but the encoder has {found}; "
                        "it belongs to another encoder"
                    )
                if like.device != value.device or like.stride() != value.stride():
                    part[name] = torch.empty_like(like).copy_(value)
        self._placed = True


def leading(tensor: Tensor, like: Tensor) -> Tensor:
    """The rows of a parameter that another tensor has too: (>= R, ...) -> (R, ...), a view."""
    return tensor if tensor.ndim == 0 else tensor[: len(like)]


def padded(value: Tensor | None, like: Tensor) -> Tensor:
    """(R, ...) in the shape of a parameter that has grown since: new rows are 0; all of them where there was nothing."""
    out = torch.zeros_like(like)
    if value is not None:
        leading(out, value).copy_(value)
    return out
