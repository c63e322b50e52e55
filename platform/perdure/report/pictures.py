"""What a report shows beside its numbers: queries with what they found, a map of features, Gram matrices, pictures made by inversion.

Files of a run's folder, each of which may be missing:

    examples.json                   queries and their hits, pictures included
    changes.json                    what became of the queries of earlier tasks
    features.npz                    coordinates of test pictures in the plane, as encoders see them
    grams.npz                       inner products of test pictures under two encoders
    tasks/<t:03d>/inversion.npz     pictures that a strategy made up while it learned task t; see `Inversion`
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdure.errors import DataError
from perdure.report.reading import Report

__all__ = ["Change", "Example", "FeatureMap", "Inversion", "ReportPictures"]

_EXAMPLES, _CHANGES, _GRAMS, _FEATURES, _INVERSIONS = (
    "examples.json",
    "changes.json",
    "grams.npz",
    "features.npz",
    "tasks/*/inversion.npz",
)
_CLASSES = "classes"  # beside the matrices in grams.npz


@dataclass(frozen=True)
class Example:
    """One query and what came back, best first."""

    kind: str  # "image", "text", or "words" of an item that is words alone
    text: str  # the words of a text query; of a picture, what it shows
    image: bytes | None  # of an image query: PNG, JPEG or WebP
    label: str  # the class that would be right
    hits: list[dict[str, Any]]  # id, label, score, encoder, png (bytes of PNG, JPEG or WebP, or None), right (bool), task
    task: int | None = None  # that brought the class, from 0
    before: list[dict[str, Any]] | None = None  # hits as of the release before; None where that did not know the task
    why: str = ""  # "lost" or "won": shown because the last task changed its answer most; empty: not chosen by its answer

    def question(self) -> tuple[str, str, bytes | None]:
        """What was asked: equal for the same query in two runs."""
        return self.kind, self.text, self.image


@dataclass(frozen=True)
class Change:
    """What the last task did to the first hits of queries of earlier tasks."""

    kind: str  # as of `Example`
    queries: int  # that were asked of the release before and of the last one
    right_before: int
    right_after: int
    lost: int  # right before, wrong after
    won: int  # wrong before, right after


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Test pictures of a few classes in the plane, as encoders of one run see them; n pictures, C classes, E encoders."""

    rows: NDArray[np.int64]  # (n,) of the dataset
    class_of: NDArray[np.int64]  # (n,) position in `classes`
    classes: list[str]  # (C,)
    task_of: list[int]  # (C,) task of each class
    encoders: list[str]  # (E,) oldest first
    points: NDArray[np.float32]  # (E, n, 2)
    agreement: list[list[float]]  # (E, C) share of a picture's nearest ten, by its embedding and among these n, that are of its class

    def save(self, path: Path) -> None:
        """Keep it as one file."""
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in vars(self).items()}
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> "FeatureMap":
        """What `save` kept."""
        with np.load(path) as stored:
            lists = {name: stored[name].tolist() for name in ("classes", "task_of", "encoders", "agreement")}
            return cls(rows=stored["rows"], class_of=stored["class_of"], points=stored["points"], **lists)


@dataclass(frozen=True, eq=False)
class Inversion:
    """Pictures that a strategy made up from an encoder's own statistics while it learned a task; n pictures of H x W."""

    task: int  # that was learned with them, from 0
    images: NDArray[np.uint8]  # (n, H, W, 3)
    labels: NDArray[np.int64]  # (n,) class ids in the order in which the stream introduces the classes
    curve: NDArray[np.float32]  # (iterations,) loss of the BatchNorm statistics
    noise: NDArray[np.uint8] | None = None  # (m, H, W, 3) what some of them were made from
    named: bool = True  # False: `labels` are numbers of groups that the pictures form, not of classes

    @classmethod
    def load(cls, path: Path) -> "Inversion":
        """Read `tasks/<t:03d>/inversion.npz`: arrays `images`, `labels`, `curve` and, where they were kept, `noise` and `named`.

        Raises:
            DataError: an array is missing or of another shape.
        """
        with np.load(path) as stored:
            arrays: dict[str, NDArray[Any]] = {name: stored[name] for name in stored.files}
        shapes = {name: array.shape for name, array in arrays.items()}
        images, labels, noise = (shapes.get(name, ()) for name in ("images", "labels", "noise"))
        fits = len(images) == 4 and images[3] == 3 and labels == images[:1] and len(shapes.get("curve", ())) == 1
        if not fits or ("noise" in arrays and noise[1:] != images[1:]) or arrays["images"].dtype != np.uint8:
            raise DataError(
                f"{path}: expected images (n, H, W, 3) uint8, labels (n,), curve (iterations,) and optionally noise (m, H, W, 3); "
                f"found {', '.join(f'{name} {array.dtype} {array.shape}' for name, array in arrays.items()) or 'nothing'}"
            )
        return cls(
            task=int(path.parent.name),
            images=arrays["images"],
            labels=arrays["labels"].astype(np.int64),
            curve=arrays["curve"].astype(np.float32),
            noise=arrays.get("noise"),
            named=bool(arrays.get("named", True)),
        )


@dataclass(frozen=True, eq=False)
class ReportPictures:
    """Everything of a page that is not in `report.json`."""

    examples: list[Example] = field(default_factory=list[Example])
    grams: dict[str, NDArray[Any]] = field(
        default_factory=dict[str, NDArray[Any]]
    )  # name -> (n, n); a "teacher" and a "student" are compared
    beside: list[Report] = field(default_factory=list[Report])  # reports of other runs on the same stream: fine_tune, joint
    gram_classes: list[str] = field(default_factory=list[str])  # (n,) class of each row and column of the Gram matrices
    changes: list[Change] = field(default_factory=list[Change])
    features: FeatureMap | None = None
    inversions: list[Inversion] = field(default_factory=list[Inversion])
    of_beside: "dict[str, ReportPictures]" = field(default_factory=dict[str, "ReportPictures"])  # run's name -> its pictures

    def save(self, folder: Path) -> None:
        """Keep examples, changes, features and Gram matrices in a run's folder, so that its page can be written again.

        Inversions are there already, left by the strategy that made them; other runs' pictures are in their own folders.
        """
        folder.mkdir(parents=True, exist_ok=True)
        plain = [asdict(example) for example in self.examples]
        text = json.dumps(plain, default=lambda data: base64.b64encode(data).decode())
        (folder / _EXAMPLES).write_text(text, encoding="utf-8")
        (folder / _CHANGES).write_text(json.dumps([asdict(change) for change in self.changes]), encoding="utf-8")
        arrays: dict[str, Any] = {name: np.asarray(gram, np.float32) for name, gram in self.grams.items()}
        if self.gram_classes:
            arrays[_CLASSES] = np.asarray(self.gram_classes)
        np.savez_compressed(folder / _GRAMS, **arrays)
        if self.features is not None:
            self.features.save(folder / _FEATURES)
        else:
            (folder / _FEATURES).unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path, beside: Sequence[Report] = ()) -> "ReportPictures":
        """What is in a folder; nothing where there is nothing. Pictures of runs beside are taken from the folders beside this one.

        Raises:
            DataError: pictures made by inversion are not as `Inversion` says.
        """
        grams: dict[str, NDArray[Any]] = {}
        if (folder / _GRAMS).exists():
            with np.load(folder / _GRAMS) as stored:
                grams = {name: stored[name] for name in stored.files}
        classes = grams.pop(_CLASSES, None)
        names = [str(report.get("name", "")) for report in beside]
        folders = {name: folder.parent / name for name in names if name and Path(name).name == name and name != folder.name}
        return cls(
            examples=[_example(plain) for plain in _listed(folder / _EXAMPLES)],
            grams=grams,
            beside=list(beside),
            gram_classes=[] if classes is None else [str(label) for label in classes],
            changes=[Change(**plain) for plain in _listed(folder / _CHANGES)],
            features=FeatureMap.load(folder / _FEATURES) if (folder / _FEATURES).exists() else None,
            inversions=[Inversion.load(path) for path in sorted(folder.glob(_INVERSIONS)) if path.parent.name.isdigit()],
            of_beside={name: cls.load(other) for name, other in folders.items()},
        )


def _listed(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def _example(plain: dict[str, Any]) -> Example:
    before = plain.get("before")
    return Example(
        kind=plain["kind"],
        text=plain["text"],
        image=_bytes(plain["image"]),
        label=plain["label"],
        hits=[_hit(hit) for hit in plain["hits"]],
        task=plain.get("task"),
        before=None if before is None else [_hit(hit) for hit in before],
        why=plain.get("why", ""),
    )


def _hit(plain: dict[str, Any]) -> dict[str, Any]:
    return {**plain, "png": _bytes(plain.get("png"))}


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
