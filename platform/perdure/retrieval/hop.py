"""What was learned of one hop from an encoder to the next, for pictures and for captions apart, and how it is stored."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from perdure.errors import Corrupt

__all__ = ["Hop"]


@dataclass(frozen=True, eq=False)
class Hop:
    """Of one hop, or of several; the shape of the arrays is up to the subclass."""

    called: ClassVar[str]

    image: NDArray[np.float32]
    text: NDArray[np.float32] | None  # None where the encoder has no text tower

    def save(self, path: Path) -> None:
        """As safetensors."""
        save_file({"image": self.image} | ({} if self.text is None else {"text": self.text}), path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """What `save` wrote.

        Raises:
            Corrupt: it cannot be read.
        """
        try:
            arrays = load_file(path)
            return cls(arrays["image"], arrays.get("text"))
        except Exception as error:  # safetensors raises its own SafetensorError, KeyError or OSError for a damaged file
            raise Corrupt(f"{path}: not the {cls.called} of an encoder version ({error})") from None
