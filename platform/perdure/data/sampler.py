"""PKSampler: batches of P classes with K items each, so that every anchor of a ranking loss has positives and negatives.

n items, B batch, K items of a class.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PKSampler"]


class PKSampler:
    """The batches of a run, each a pure function of the seed and the step, so that a saved position is one integer.

    An epoch: the items of each class, shuffled, are cut into groups of at most K and of nearly equal size (9 items at K = 4 are
    3 + 3 + 3: no item is left without a positive); the groups of each class are spread evenly over the epoch with a random jitter,
    and the sequence is cut into batches of B. So each item comes once an epoch, but for two repairs: the last batch is filled from
    the first, and a batch that drew a single class gives its last K places to a group of others.

    Args:
        labels: (n,) int64 class of each item.
        batch_size: B; when there are fewer items than that, B is n rounded down to whole groups of K (see `batch_size`).
        per_class: K.
        seed: of all shuffles.
    Raises:
        ValueError: no items, or B or K below 1.
    """

    def __init__(self, labels: NDArray[np.int64], *, batch_size: int, per_class: int, seed: int) -> None:
        if labels.ndim != 1 or not len(labels) or batch_size < 1 or per_class < 1:
            raise ValueError(f"PKSampler: {labels.shape} labels, batch_size={batch_size}, per_class={per_class}; all must be at least 1")
        n = len(labels)
        self.batch_size = batch_size if n >= batch_size else max(n - n % per_class, min(n, per_class))
        self.steps_per_epoch = -(-n // self.batch_size)
        self.position = 0  # the step after the one asked for last
        self._labels = np.unique(labels, return_inverse=True)[1].astype(np.int64)
        self._per_class = per_class
        self._seed = seed
        self._planned: tuple[int, NDArray[np.int64]] | None = None

    def batch(self, step: int) -> NDArray[np.int64]:
        """Positions (B,) int64 in 0..n-1 of the items of a step; items of a group are neighbours."""
        epoch, inside = divmod(step, self.steps_per_epoch)
        if self._planned is None or self._planned[0] != epoch:
            self._planned = (epoch, self._plan(epoch))
        self.position = step + 1
        return self._planned[1][inside]

    def state_dict(self) -> dict[str, Any]:
        """The position, and what the sequence depends on."""
        return {"position": self.position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved position.

        Raises:
            ValueError: it was saved by a sampler with another sequence, so the run would not be the same.
        """
        mine = self._identity()
        changed = [f"{key} was {state.get(key)}, is {value}" for key, value in mine.items() if state.get(key) != value]
        if changed:
            raise ValueError(f"PKSampler: the saved position belongs to another sequence of batches: {'; '.join(changed)}")
        self.position = int(state["position"])

    def _identity(self) -> dict[str, int]:
        return {"items": len(self._labels), "batch_size": self.batch_size, "per_class": self._per_class, "seed": self._seed}

    def _plan(self, epoch: int) -> NDArray[np.int64]:
        """The batches (steps, B) of an epoch."""
        random = np.random.default_rng([self._seed, epoch])
        order = self._spread(random)
        missing = self.steps_per_epoch * self.batch_size - len(order)
        plan = np.concatenate([order, order[:missing]]).reshape(self.steps_per_epoch, self.batch_size)
        labels = self._labels[plan]
        if self.batch_size > 1 and self._labels.max() > 0:
            others_of: dict[int, NDArray[np.int64]] = {}  # it is nearly always the same class that fills a batch alone
            for step in np.flatnonzero((labels == labels[:, :1]).all(axis=1)):
                alone = int(labels[step, 0])
                if alone not in others_of:
                    others_of[alone] = np.flatnonzero(self._labels != alone)
                count = min(self._per_class, len(others_of[alone]), self.batch_size // 2)
                plan[step, -count:] = self._group_of(others_of[alone], count, random)
        return plan

    def _spread(self, random: np.random.Generator) -> NDArray[np.int64]:
        """All positions (n,), groups together, each class spread over the whole."""
        shuffled = random.permutation(len(self._labels))
        by_class = shuffled[np.argsort(self._labels[shuffled], kind="stable")]
        sizes = np.bincount(self._labels)  # (C,)
        groups = -(-sizes // self._per_class)  # (C,) groups of each class
        rank = np.arange(len(by_class)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # of an item inside its class
        owner = np.repeat(np.arange(len(sizes)), sizes)
        group = rank * groups[owner] // sizes[owner]  # nearly equal sizes
        first_group = np.cumsum(groups) - groups
        owner_of_group = np.repeat(np.arange(len(sizes)), groups)
        place = (np.arange(len(owner_of_group)) - first_group[owner_of_group] + random.random(len(owner_of_group))) / groups[owner_of_group]
        return by_class[np.argsort(place[first_group[owner] + group], kind="stable")]

    def _group_of(self, others: NDArray[np.int64], count: int, random: np.random.Generator) -> NDArray[np.int64]:
        """`count` of the given positions, of one class as far as it has so many."""
        chosen = self._labels[random.choice(others)]
        same = others[self._labels[others] == chosen]
        rest = others[self._labels[others] != chosen]
        return np.concatenate([random.permutation(same), random.permutation(rest)])[:count]
