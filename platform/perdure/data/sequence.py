"""A dataset that is several datasets, one after another: what a lifelong stream (birds, then dogs, then cars) is cut from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from perdure.catalog import did_you_mean
from perdure.config import PartConfig
from perdure.data.dataset import Dataset, check_items, fingerprint, split_anew
from perdure.data.picture_files import TestShare
from perdure.data.sources import SOURCES
from perdure.errors import DataError
from perdure.records import Item

__all__ = ["DatasetSequence", "SequencePart"]

_SHOWN = 3  # wrong labels in a message


class SequencePart(BaseModel):
    """One of the datasets, or some classes of one."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)

    dataset: PartConfig = Field(description="any dataset but a sequence, with its options")
    as_: str = Field(alias="as", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="its name: group, and prefix of its ids and labels")
    labels: tuple[str, ...] | None = Field(default=None, min_length=1, description="only these classes; null = all")
    test_share: TestShare | None = Field(default=None, description="share of each class to hold out, instead of the dataset's own split")

    @field_validator("dataset")
    @classmethod
    def _written_out(cls, dataset: PartConfig) -> PartConfig:
        """The dataset with every option, so that what a manifest keeps does not depend on later defaults."""
        problems = SOURCES.problems(dataset.name, dataset.options)
        if problems:
            raise ValueError("; ".join(problems))
        return PartConfig.model_validate({"name": dataset.name, **SOURCES.plain(dataset.name, dataset.options)})


def _distinct(parts: list[SequencePart]) -> list[SequencePart]:
    names = [part.as_ for part in parts]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"two parts are called '{repeated[0]}'; ids and labels are told apart by that name")
    return parts


Parts = Annotated[list[SequencePart], Field(min_length=1), AfterValidator(_distinct)]


@dataclass(frozen=True, eq=False)
class _Opened:
    """A part: its dataset, and the rows of it that are taken."""

    name: str
    dataset: Dataset
    rows: Sequence[int]


class DatasetSequence:
    """The parts in their order; `group` is the part's name, ids and labels are `name/...`, so they are unique and never meet.

    Parts with the same dataset and options share one opened dataset: its annotation and its buffers are in memory once.

    Args:
        parts: `[{dataset: {name: parquet, ...}, as: animals, labels: [...], test_share: 0.4}, ...]`.
    Raises:
        DataError: a label that a part's dataset does not have; whatever a part's dataset raises.
    """

    name = "sequence"

    def __init__(self, *, parts: Parts) -> None:
        opened: dict[str, Dataset] = {}
        self._parts: list[_Opened] = []
        items: list[Item] = []
        for part in parts:
            key = part.dataset.model_dump_json()
            if key not in opened:
                opened[key] = SOURCES.build(part.dataset.name, part.dataset.options)
            rows, chosen = _chosen(part, opened[key])
            self._parts.append(_Opened(part.as_, opened[key], rows))
            items += chosen
        self.items: Sequence[Item] = check_items(self.name, items)
        self._starts = np.cumsum([0, *(len(part.rows) for part in self._parts)], dtype=np.int64)
        told = [(part.as_, part.labels, part.test_share, at.dataset.digest) for part, at in zip(parts, self._parts, strict=True)]
        self.digest = fingerprint([self.name, *told])

    def where(self, row: int) -> str:
        """The part's name, and where its dataset says that the row is."""
        part, inside = self._locate(row)
        return f"{part.name}: {part.dataset.where(inside)}"

    def image_bytes(self, row: int) -> bytes:
        """The picture as its dataset gives it.

        Raises:
            DataError: it cannot be read.
        """
        part, inside = self._locate(row)
        return part.dataset.image_bytes(inside)

    def _locate(self, row: int) -> tuple[_Opened, int]:
        """The part of a row, and its row there."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        part = self._parts[number]
        return part, part.rows[row - int(self._starts[number])]


def _chosen(part: SequencePart, dataset: Dataset) -> tuple[list[int], list[Item]]:
    """The rows of a dataset that a part takes, and their items under the part's name."""
    known = {item.label for item in dataset.items}
    wanted = known if part.labels is None else set(part.labels)
    missing = [label for label in part.labels or () if label not in known]
    if missing:
        asked = "; ".join(f"no class '{label}'.{did_you_mean(label, known)}" for label in missing[:_SHOWN])
        more = f" And {len(missing) - _SHOWN} more." if len(missing) > _SHOWN else ""
        raise DataError(f"sequence part '{part.as_}': labels: {asked}{more} {dataset.name} has {len(known)} classes")
    rows = [row for row, item in enumerate(dataset.items) if item.label in wanted]
    items = [dataset.items[row] for row in rows]
    if part.test_share is not None:
        items = split_anew(items, part.test_share)
    return rows, [replace(item, id=f"{part.as_}/{item.id}", label=f"{part.as_}/{item.label}", group=part.as_) for item in items]
