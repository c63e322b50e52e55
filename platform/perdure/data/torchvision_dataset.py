"""Any classification or caption dataset of torchvision, by its class name."""

import inspect
import io
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perdure.catalog import did_you_mean
from perdure.data.dataset import check_items, file_stamp, fingerprint, hold_out
from perdure.errors import DataError
from perdure.records import Item
from perdure.torchvision_guard import import_torchvision

__all__ = ["TorchvisionDataset"]

_LABELS = ("targets", "labels", "_labels")  # where torchvision's datasets keep what they would return as the target


class TorchvisionDataset:
    """`dataset: CIFAR100`, `root: data` and so on; pictures are handed on as PNG, which loses nothing.

    A constructor with `train` is called with True and False, one with `split` with "train" and "test", and both can be overridden by
    the options; one with neither is a single set, of which a fifth of each class is held out (`hold_out`).

    Args:
        dataset: name of a class in `torchvision.datasets`.
        root: folder of its files.
        train_options: more arguments for the training split, such as `{split: trainval}`.
        test_options: the same for the test split.
        download: fetch the files when they are not there.
    Raises:
        DataError: no such dataset, files that are not there, targets that are neither a class nor captions.
    """

    name = "torchvision"

    def __init__(
        self,
        *,
        dataset: str,
        root: str,
        train_options: dict[str, Any] = {},  # noqa: B006 - never changed; a plain default keeps the catalog's schema plain
        test_options: dict[str, Any] = {},  # noqa: B006
        download: bool = False,
    ) -> None:
        self._dataset = dataset
        folder = Path(root).expanduser()
        constructor = _constructor(dataset)
        known = inspect.signature(constructor).parameters
        shared = {key: value for key, value in {"root": str(folder), "download": download}.items() if key in known}
        split = next((key for key in ("train", "split") if key in known), None)
        by_split = {"train": ({"train": True}, {"train": False}), "split": ({"split": "train"}, {"split": "test"}), None: ({}, {})}[split]
        two = split is not None or bool(test_options)
        self._parts = [_open(constructor, {**shared, **by_split[0], **train_options})]
        if two:
            self._parts.append(_open(constructor, {**shared, **by_split[1], **test_options}))
        self._rows = [(part, inside) for part, opened in enumerate(self._parts) for inside in range(len(opened))]
        targets = [target for opened in self._parts for target in _targets(opened)]
        names = list(getattr(self._parts[0], "classes", None) or [])
        prefixes = ("train", "test") if two else ("all",)
        ids = [f"{prefixes[part]}/{inside}" for part, inside in self._rows]
        labelled = [self._label(row, key, target, names) for row, (key, target) in enumerate(zip(ids, targets, strict=True))]
        labels = [label for label, _ in labelled]
        splits = [prefixes[part] for part, _ in self._rows] if two else hold_out(ids, labels)
        items = [
            Item(id=key, label=label, captions=captions, split=side)
            for key, (label, captions), side in zip(ids, labelled, splits, strict=True)
        ]
        self.items: Sequence[Item] = check_items(f"{self.name} {dataset}", items)
        stamps = sorted((str(path.relative_to(folder)), file_stamp(path)) for path in folder.rglob("*") if path.is_file())
        self.digest = fingerprint([self.name, dataset, train_options, test_options, labels, *stamps])

    def where(self, row: int) -> str:
        """The dataset and the number of the picture in its split."""
        return f"torchvision {self._dataset} row {row} (id '{self.items[row].id}')"

    def image_bytes(self, row: int) -> bytes:
        """The picture as PNG.

        Raises:
            DataError: torchvision cannot give it.
        """
        part, inside = self._rows[row]
        try:
            image, _ = self._parts[part][inside]
            out = io.BytesIO()
            image.save(out, format="PNG", compress_level=1)
        except Exception as error:  # torchvision reads by many libraries; whatever goes wrong is about this picture
            raise DataError(f"{self.where(row)}: {type(error).__name__}: {error}") from None
        return out.getvalue()

    def _label(self, row: int, key: str, target: Any, names: Sequence[Any]) -> tuple[str, tuple[str, ...]]:
        """Label and captions that a target stands for."""
        if isinstance(target, str):
            return target, ()
        captions: list[Any] = list(target) if isinstance(target, list | tuple) else []
        if captions and all(isinstance(text, str) for text in captions):
            return key, tuple(captions)
        number = _as_class(target)
        if number is None:
            found = type(target).__name__
            raise DataError(f"torchvision {self._dataset} row {row}: the target is {found}; a class or captions are expected")
        named = names[number] if 0 <= number < len(names) else number
        return ", ".join(map(str, named)) if isinstance(named, tuple) else str(named), ()


def _constructor(dataset: str) -> Any:
    datasets = import_torchvision().datasets
    known = [name for name in datasets.__all__ if inspect.isclass(getattr(datasets, name))]
    if dataset not in known:
        raise DataError(f"torchvision has no dataset '{dataset}'.{did_you_mean(dataset, known)}")
    return getattr(datasets, dataset)


def _open(constructor: Any, options: dict[str, Any]) -> Any:
    try:
        return constructor(**options)
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise DataError(
            f"torchvision {constructor.__name__} with {options}: {error}. Put its files under the root, or set download: true"
        ) from None


def _as_class(target: Any) -> int | None:
    """A class number, also from a tensor or an array of one element; None for anything else."""
    try:
        return operator.index(target)
    except TypeError:
        return None


def _targets(opened: Any) -> list[Any]:
    """The target of every picture, without decoding the pictures where the dataset keeps targets in a list."""
    for attribute in _LABELS:
        kept = getattr(opened, attribute, None)
        if kept is not None and len(kept) == len(opened):
            return kept.tolist() if hasattr(kept, "tolist") else list(kept)
    return [opened[inside][1] for inside in range(len(opened))]
