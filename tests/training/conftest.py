"""A stream so small that a task is learned in a second: coloured noise, four classes a task."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from perdure.data.pixels import Pixels
from perdure.encoders import Encoder, build_encoder
from perdure.training.loop import TaskData
from perdure.training.precision import Precision

CAPTIONS = ("a red patch", "green noise in a square", "blue", "a yellow picture with dots")


@pytest.fixture
def fp32() -> Precision:
    return Precision("fp32", torch.device("cpu"), channels_last=False)


@pytest.fixture(scope="session")
def toy_pixels() -> Pixels:
    draw = np.random.default_rng(0)
    means = draw.integers(40, 200, size=(8, 1, 1, 3))
    noise = draw.normal(0, 30, size=(96, 16, 16, 3))
    return Pixels(np.clip(means[np.arange(96) % 8] + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def toy_task(toy_pixels: Pixels) -> Callable[..., TaskData]:
    def make(index: int, *, text: bool = False) -> TaskData:
        rows = np.flatnonzero(np.arange(96) % 8 // 4 == index).astype(np.int64)
        captions = [(CAPTIONS[row % 4], f"{CAPTIONS[row % 4]} number {row}") for row in rows] if text else None
        return TaskData(toy_pixels, rows, rows % 8, captions)

    return make


@pytest.fixture(scope="session")
def toy_encoder() -> Callable[..., Encoder]:
    def make(*, text: bool = False, classes: int = 4, joint: bool = False) -> Encoder:
        tower = {"name": "bilstm", "dropout": 0.3} if text else "none"
        options = {"image_size": 16, "width": 4, "embedding_dim": 8, "text": tower, "joint": {"hidden": 12} if joint else None}
        encoder = build_encoder("small_resnet", options, with_text=text, seed=3)
        encoder.grow(num_classes=classes, captions=CAPTIONS if text else ())
        return encoder

    return make
