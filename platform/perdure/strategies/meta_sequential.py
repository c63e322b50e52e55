"""Meta-learned sequential learning over modalities: a step is judged by where it leads, on what is new and on what was learned.

After Song and Tan, "Sequential Learning for Cross-modal Retrieval", ICCV workshops 2019: one unified model, one modality after another, no
aligned pairs, and an objective of optimisation-based meta-learning against forgetting. THE PAPER'S UPDATE RULE WAS NOT FOUND; the rule
below is ours, not the paper's. M prototypes, H features before the joint trunk, n classes.
"""

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from perdure.encoders.encoder import Encoder
from perdure.errors import ConfigError
from perdure.losses import softened_cross_entropy
from perdure.records import Embedded
from perdure.strategies.ranking import DEFAULT_RANKING, Ranking, Weight
from perdure.strategies.strategy import Examples, Strategy, TaskContext

__all__ = ["MetaSequential"]

log = logging.getLogger(__name__)

_GROUP, _PER_CLASS = 64, 4  # items that are embedded together for the prototypes
_SHARED = ("encoder.joint.", "encoder.classifier.")  # of `_AtShared`'s parameters, those that all modalities share
Count = Annotated[int, Field(ge=1)]


class MetaSequential(Strategy):
    """A first-order bilevel step, from the second task on; ours, not the paper's.

        theta' = theta - a grad L(theta; B)
        theta <- theta - b grad_{theta'} [ L(theta'; B) + l KL(p_old(P) || p_{theta'}(P)) ]

    L: the ranking terms on the batch B of the new modality. a: `inner_lr`, a plain step; b: the optimiser's. l: `weight`. The gradient is
    taken at theta' and applied at theta, without second derivatives: what is sought are parameters that one step of adaptation to the
    new modality does not push away from the old ones.

    P are class prototypes of the earlier modalities: for each task and class the mean of the features that go INTO the joint trunk, as
    they were after that task. p(P) is what the joint trunk and the classifier say of them, p_old by those of the parent, over the
    classes that it knew. So KL is about exactly the parameters that modalities share, and no item of an earlier task is needed.

    theta' moves the shared parameters alone, the joint trunk and the classifier; the stems take part in the outer step, with their gradient
    at (stems, shared'). KL does not depend on them, and a step of theirs would take a second pass through the network. So nothing holds
    a stem that two modalities share (pictures and sketches): what that forgets, this does not see.

    `prototypes=false` leaves KL out, and the two-step gradient is what remains. The first task is learned as by every other strategy.
    It was not found to forget less than fine-tuning: docs/how-to/modality-sequence.md has the figures.

    Raises:
        ConfigError: the encoder has no joint trunk, or the ranking's metric keeps a memory of batches, which two steps would fill twice.
    """

    name = "meta_sequential"

    def __init__(
        self,
        *,
        inner_lr: Weight = 0.01,
        weight: Weight = 10.0,
        prototypes: bool = True,
        items: Count = 1024,
        ranking: Ranking = DEFAULT_RANKING,
    ) -> None:
        """A new strategy.

        Args:
            inner_lr: a, of the step inside; 0: the gradient at theta itself, and KL.
            weight: l, of KL.
            prototypes: whether there is KL at all.
            items: of a task, about how many the prototypes are means over.
            ranking: the terms that a task is learned with.
        """
        super().__init__(ranking=ranking)
        if ranking.metric is not None and ranking.metric.memory is not None:
            raise ConfigError(
                f"strategy '{self.name}'",
                ["ranking.metric.memory would be filled twice a step, which is taken twice; leave it out, or choose another strategy"],
            )
        self._inner_lr = inner_lr
        self._weight = weight if prototypes else 0.0
        self._items = items
        self._features: dict[int, Tensor] = {}  # of each task, (n, H) the mean features of its classes
        self._task_index = 0
        self._parent: nn.Module | None = None  # joint trunk and classifier, frozen

    def begin_task(self, encoder: Encoder, task: TaskContext) -> None:
        """Freeze what the parent says of its features."""
        super().begin_task(encoder, task)
        if encoder.joint is None:
            raise ConfigError(
                f"strategy '{self.name}'",
                ["it holds layers that all modalities share, and this encoder has none: set encoder.joint={hidden: 256}"],
            )
        self._task_index = task.index
        self._place(encoder)
        self._parent = None
        if task.index > 0:
            self._parent = copy.deepcopy(nn.Sequential(encoder.joint, encoder.classifier)).requires_grad_(False)
            if not self._features and self._weight > 0:
                log.warning("%s: task %d begins without prototypes: no task before it was learned by this strategy", self.name, task.index)

    def loss_terms(self, encoder: Encoder, batch: Embedded) -> dict[str, Tensor]:
        """The ranking terms at theta', and from the second task on `prototypes`, the weighted KL there."""
        if self._parent is None:
            return super().loss_terms(encoder, batch)
        if batch.features is None:
            raise ValueError(f"{self.name}: the batch came without features; pass on what the encoder's `features` gave")
        objective = _AtShared(encoder, self.ranking_terms)
        shared = {name: each for name, each in objective.named_parameters() if name.startswith(_SHARED) and each.requires_grad}
        here = replace(batch, features=batch.features.detach(), text_features=_detached(batch.text_features))
        with torch.enable_grad():
            inner = torch.stack(list(objective(here).values())).sum()
            gradients = torch.autograd.grad(inner, list(shared.values()), materialize_grads=True)
        moved = {name: each - self._inner_lr * gradient for (name, each), gradient in zip(shared.items(), gradients, strict=True)}
        terms: dict[str, Tensor] = functional_call(objective, moved, (batch,))
        if self._features and self._weight > 0:
            terms = terms | {"prototypes": self._weight * self._divergence(encoder, moved)}
        return terms

    def consolidate(self, encoder: Encoder, examples: Examples) -> None:
        """The mean features of each class of the task that was just learned."""
        sums: dict[int, Tensor] = {}
        counts: dict[int, int] = {}
        with torch.no_grad():
            for group in examples.batches(size=_GROUP, per_class=_PER_CLASS, count=-(-self._items // _GROUP)):
                features, text_features = encoder.features(*group.inputs)
                for each, offset in ((features, 0), (text_features, 1)):
                    if each is None:
                        continue
                    for label in group.labels.unique().tolist():
                        own = each[group.labels == label].double()
                        key = 2 * label + offset  # captions of pictures are another modality than the pictures
                        sums[key] = sums.get(key, torch.zeros_like(own[0])) + own.sum(dim=0)
                        counts[key] = counts.get(key, 0) + len(own)
        self._place(encoder)
        self._features[self._task_index] = torch.stack([(sums[key] / counts[key]).float() for key in sorted(sums)])

    def end_task(self, encoder: Encoder) -> None:
        """Let go of the parent."""
        self._parent = None

    def state_dict(self) -> dict[str, Tensor]:
        """The prototypes, as meta_sequential.features.TASK."""
        return {f"{self.name}.features.{task:03d}": features for task, features in self._features.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `Strategy`."""
        features: dict[int, Tensor] = {}
        for key, value in state.items():
            task = key.removeprefix(f"{self.name}.features.")
            if task == key or not task.isdigit():
                raise ValueError(f"{self.name} keeps {self.name}.features.TASK, but got '{key}': was this saved by another strategy?")
            features[int(task)] = value.clone()
        self._features = features

    def _place(self, encoder: Encoder) -> None:
        """The prototypes where the encoder is."""
        self._features = {task: features.to(encoder.device) for task, features in self._features.items()}

    def _divergence(self, encoder: Encoder, moved: Mapping[str, Tensor]) -> Tensor:
        """() KL(p_old(P) || p_{theta'}(P)), a mean over the M prototypes."""
        assert self._parent is not None
        assert encoder.joint is not None
        features_MH = torch.cat([features.to(encoder.device) for features in self._features.values()])
        said_Mn: Tensor = self._parent.to(encoder.device)(features_MH)
        joint = {name.removeprefix("encoder.joint."): each for name, each in moved.items() if name.startswith("encoder.joint.")}
        head = {name.removeprefix("encoder.classifier."): each for name, each in moved.items() if name.startswith("encoder.classifier.")}
        embeddings_MD = functional_call(encoder.joint, joint, (features_MH,))
        logits_Mn = functional_call(encoder.classifier, head, (embeddings_MD,))[:, : said_Mn.shape[1]]
        entropy = softened_cross_entropy(said_Mn, said_Mn, temperature=1.0)
        return softened_cross_entropy(said_Mn, logits_Mn, temperature=1.0) - entropy


class _AtShared(nn.Module):
    """The ranking terms as a function of the shared parameters, from features that are there already."""

    def __init__(self, encoder: Encoder, terms: Callable[[Encoder, Embedded], dict[str, Tensor]]) -> None:
        super().__init__()
        self.encoder = encoder
        self._terms = terms

    def forward(self, batch: Embedded) -> dict[str, Tensor]:
        assert batch.features is not None
        image, text = self.encoder.joined(batch.features, batch.text_features)
        return self._terms(self.encoder, replace(batch, image=image, text=text))


def _detached(features: Tensor | None) -> Tensor | None:
    return None if features is None else features.detach()
