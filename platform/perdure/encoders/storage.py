"""Encoders as files: `weights.safetensors` and `encoder.json`. Nothing here is pickle."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from perdure.encoders.encoder import Encoder
from perdure.encoders.parts import build_encoder
from perdure.encoders.vocabulary import Vocabulary
from perdure.encoders.whitening import Whitening
from perdure.errors import Corrupt, NotFound

__all__ = ["DESCRIPTION", "WEIGHTS", "load_encoder", "save_encoder"]

WEIGHTS = "weights.safetensors"
DESCRIPTION = "encoder.json"


def save_encoder(encoder: Encoder, folder: Path) -> None:
    """Write an encoder's weights and its description, vocabulary included, into a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps(encoder.describe(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def load_encoder(folder: Path) -> Encoder:
    """Read what `save_encoder` wrote: an encoder in evaluation mode, on the CPU, with the same weights bit for bit.

    Raises:
        NotFound: the folder lacks one of the two files.
        Corrupt: a file cannot be read, or the weights are not those of the described encoder.
    """
    for name in (WEIGHTS, DESCRIPTION):
        if not (folder / name).is_file():
            raise NotFound(f"no encoder in {folder}: it has no {name}.")
    try:
        described: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        vocabulary, options = described["vocabulary"], described["options"]
        # Pre-trained weights were where this encoder began; they need not be at hand where it is loaded.
        begun = {key: None if key == "weights" else value for key, value in options.items()}
        encoder = build_encoder(described["name"], begun, with_text=vocabulary is not None, seed=described["seed"])
        encoder.options = options
        if encoder.vocabulary is not None:
            encoder.vocabulary = Vocabulary(vocabulary)
        encoder.grow(num_classes=described["num_classes"])
        whitening = described.get("whitening")  # encoders of before there was one do not say
        if whitening is not None:
            encoder.whitening = Whitening(torch.zeros(encoder.joint_dim), torch.zeros(whitening["dim"], encoder.joint_dim))
        encoder.load_state_dict(load_file(folder / WEIGHTS))
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise Corrupt(f"the encoder in {folder} cannot be read: {error}") from error
    return encoder.eval()
