"""A metric loss and its miner as a run's configuration names them."""

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator
from torch import Tensor

from perdure.catalog import Catalog, did_you_mean
from perdure.config import PartConfig
from perdure.losses.metric import METRIC_LOSSES, MINERS, WITH_MEMORY, WITHOUT_MINER
from perdure.losses.metric.objective import MetricObjective
from perdure.losses.ranges import Count, NonNegative

__all__ = ["MetricPart", "MinerPart"]


class _Written(PartConfig):
    """A part whose options are checked by a catalog and written out with their defaults, so that a later default changes no earlier run."""

    catalog: ClassVar[Catalog[Any]]

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, value: Any) -> Any:
        part: Any = {"name": value} if isinstance(value, str) else value
        if not isinstance(part, dict) or not isinstance(part.get("name"), str):
            return part
        name, own = part["name"], {key: each for key, each in part.items() if key in cls.model_fields}
        options = {key: each for key, each in part.items() if key not in own}
        if name not in cls.catalog:
            raise ValueError(cls.catalog.unknown(name))
        known = cls.catalog.schema(name).model_fields
        problems = [f"{key}: no such option.{did_you_mean(key, [*known, *cls.model_fields])}" for key in options if key not in known]
        problems += cls.catalog.problems(name, {key: each for key, each in options.items() if key in known})
        if problems:
            raise ValueError(f"{name}: {'; '.join(problems)}")
        return {**own, **cls.catalog.plain(name, options)}


class MinerPart(_Written):
    """A miner by its name and options."""

    catalog = MINERS
    name: str = Field(description="name in MINERS")


class MetricPart(_Written):
    """A metric loss by its name and options, its weight, and what chooses its pairs."""

    catalog = METRIC_LOSSES
    name: str = Field(description="name in METRIC_LOSSES")
    weight: NonNegative = Field(default=1.0, description="of the term; 0 leaves it out")
    miner: MinerPart | None = Field(default=None, description="which pairs or triplets of the batch count; null: all")
    memory: Count | None = Field(
        default=None, description="cross-batch memory: this many rows of the last batches are compared with too; null: none"
    )

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.miner is not None and self.name in WITHOUT_MINER:
            raise ValueError(f"{self.name} chooses its pairs by itself and takes no miner; leave out miner: {self.miner.name}")
        if self.memory is not None and self.name not in WITH_MEMORY:
            raise ValueError(f"{self.name} cannot use a memory, those that can: {', '.join(sorted(WITH_MEMORY))}; leave out memory")
        return self

    def objective(self, class_ids: Tensor, embedding_dim: int, seed: int) -> MetricObjective:
        """The loss at work in one task; see there."""
        return MetricObjective(
            self.name,
            self.options,
            class_ids=class_ids,
            embedding_dim=embedding_dim,
            seed=seed,
            miner=None if self.miner is None else (self.miner.name, self.miner.options),
            memory=self.memory,
        )
