"""How teachers look at pictures in a whole run: at mirror images where training mirrors pictures, too."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from perdure.config import parse
from perdure.encoders import load_encoder
from perdure.records import EncoderRef
from perdure.registry import open_registry
from perdure.run import learn_stream

TINY: dict[str, object] = {
    "stream": {
        "dataset": {"name": "scenes", "items": 80, "classes": 4, "size": 16},
        "kind": {"name": "class_incremental", "first": 2, "step": 2},
    },
    "encoder": {"name": "small_resnet", "image_size": 16, "width": 4, "embedding_dim": 8, "text": "none"},
    "strategy": {"name": "lwf_expert"},
    "train": {"epochs": 1, "batch_size": 24, "per_class": 6, "precision": "fp32", "max_steps": 2},
    "workers": 0,
    "registry": "registry",
}


def learned(name: str, *overrides: str) -> dict[str, Tensor]:
    """The encoder after the second task."""
    learn_stream(parse(TINY, [f"name={name}", *overrides]))
    return load_encoder(open_registry("registry").folder(EncoderRef(name, 2))).state_dict()


@pytest.mark.parametrize("flip", [False, True])
def test_teachers_look_at_mirror_images_by_default_where_training_does(flip: bool, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.run.stream_run.save_pictures", lambda *_: None)
    by_default, with_them, without = (
        learned(f"run{number}", f"train.flip={flip}", *overrides)
        for number, overrides in enumerate(([], ["strategy.teacher.mirrored=true"], ["strategy.teacher.mirrored=false"]))
    )
    assert not all(torch.equal(value, without[key]) for key, value in with_them.items())
    assert all(torch.equal(value, (with_them if flip else without)[key]) for key, value in by_default.items())
