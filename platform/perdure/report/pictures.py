"""What a report shows beside its numbers: queries with what they found, and Gram matrices."""

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdure.report.reading import Report

__all__ = ["Example", "ReportPictures"]

_EXAMPLES, _GRAMS = "examples.json", "grams.npz"


@dataclass(frozen=True)
class Example:
    """One query and what came back, best first."""

    kind: str  # "image" or "text"
    text: str  # the words of a text query; of a picture, what it shows
    image: bytes | None  # PNG or JPEG of an image query
    label: str  # the class that would be right
    hits: list[dict[str, Any]]  # id, label, score, encoder, png (bytes of PNG or JPEG, or None), right (bool)


@dataclass(frozen=True, eq=False)
class ReportPictures:
    """Everything of a page that is not in `report.json`."""

    examples: list[Example] = field(default_factory=list[Example])
    grams: dict[str, NDArray[Any]] = field(
        default_factory=dict[str, NDArray[Any]]
    )  # name -> (n, n); a "teacher" and a "student" are compared
    beside: list[Report] = field(default_factory=list[Report])  # reports of other runs on the same stream: fine_tune, joint

    def save(self, folder: Path) -> None:
        """Keep examples and Gram matrices in a run's folder, so that its page can be written again."""
        folder.mkdir(parents=True, exist_ok=True)
        plain = [asdict(example) for example in self.examples]
        text = json.dumps(plain, default=lambda data: base64.b64encode(data).decode())
        (folder / _EXAMPLES).write_text(text, encoding="utf-8")
        grams: dict[str, Any] = {name: np.asarray(gram, np.float32) for name, gram in self.grams.items()}
        np.savez_compressed(folder / _GRAMS, **grams)

    @classmethod
    def load(cls, folder: Path, beside: Sequence[Report] = ()) -> "ReportPictures":
        """What `save` left in a folder; no pictures where it left none."""
        examples: list[Example] = []
        if (folder / _EXAMPLES).exists():
            for plain in json.loads((folder / _EXAMPLES).read_text(encoding="utf-8")):
                hits = [{**hit, "png": _bytes(hit.get("png"))} for hit in plain["hits"]]
                examples.append(Example(plain["kind"], plain["text"], _bytes(plain["image"]), plain["label"], hits))
        grams: dict[str, NDArray[Any]] = {}
        if (folder / _GRAMS).exists():
            with np.load(folder / _GRAMS) as stored:
                grams = {name: stored[name] for name in stored.files}
        return cls(examples, grams, list(beside))


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
