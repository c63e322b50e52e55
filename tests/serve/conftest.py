"""A tiny registry to serve from: an encoder with a text tower and random weights, 30 little pictures, two segments, two releases."""

import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from perdure.encoders import Encoder, build_encoder, save_encoder
from perdure.index import build_segment
from perdure.records import EncoderRef, Item, Release, SegmentUse
from perdure.registry import Registry, open_registry
from perdure.retrieval.follow import Poller
from perdure.retrieval.retriever import encode

COLOURS = {"red": (214, 60, 60), "green": (60, 170, 90), "blue": (60, 90, 210), "yellow": (235, 200, 60), "violet": (140, 80, 190)}
SHAPES = ("circle", "square", "triangle")


@pytest.fixture(autouse=True)
def _no_poller_outlives_its_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replicas made in this process look for a new release twenty times a second, until they are told to stop."""
    started: list[Poller] = []
    start = Poller.start

    def noted(poller: Poller) -> None:
        started.append(poller)
        start(poller)

    monkeypatch.setattr(Poller, "start", noted)
    yield
    for poller in started:
        poller.stop()


@dataclass(frozen=True)
class Gallery:
    """What is in the registry."""

    folder: Path
    items: tuple[Item, ...]  # the first 15 came with task 0, the others with task 1
    pictures: tuple[bytes, ...]

    def registry(self) -> Registry:
        return open_registry(self.folder)


def draw(colour: str, shape: str, seed: int) -> bytes:
    """A PNG of 32 x 32."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(190, 255, (32, 32, 3), dtype=np.uint8))
    pen = ImageDraw.Draw(image)
    left, top = (int(v) for v in rng.integers(2, 8, 2))
    box = (left, top, left + 20, top + 20)
    if shape == "circle":
        pen.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        pen.rectangle(box, fill=COLOURS[colour])
    else:
        pen.polygon([(left, box[3]), (left + 10, top), (box[2], box[3])], fill=COLOURS[colour])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def known(row: int) -> dict[str, str | int | float | bool]:
    """The payload of an item: a price for all, a date for the second task alone, `sale` for every third."""
    payload: dict[str, str | int | float | bool] = {"price": row * 1.5}
    if row >= 15:
        payload["drawn"] = f"2026-{1 + row % 12:02d}-01"
    return payload | ({"sale": row % 2 == 0} if row % 3 == 0 else {})


def make_encoder(seed: int, captions: list[str]) -> Encoder:
    encoder = build_encoder("small_resnet", {"embedding_dim": 16, "width": 4}, with_text=True, seed=seed)
    encoder.grow(num_classes=len(SHAPES), captions=captions)
    return encoder.eval()


def publish_task(gallery: Gallery, version: int, scratch: Path, *, promote: bool = False) -> str:
    """Publish encoder, segment and release `demo@v<version>` of one task; the release's id."""
    registry = gallery.registry()
    encoder = make_encoder(version, [item.captions[0] for item in gallery.items])
    folder = scratch / f"encoder-{version}"
    save_encoder(encoder, folder)
    parent = EncoderRef("demo", 1) if version > 1 else None
    ref = registry.publish_encoder("demo", version, {path.name: path for path in folder.iterdir()}, parent=parent)
    rows = range(15 * (version - 1), 15 * version) if version <= 2 else range(len(gallery.items))
    files = build_segment(
        encode(encoder, [gallery.pictures[row] for row in rows]),
        [gallery.items[row] for row in rows],
        task=version - 1,
        partitions=3,
        thumbnails=lambda i: gallery.pictures[rows[i]],
        folder=scratch / f"segment-{version}",
    )
    segment = registry.publish_segment("demo", version, files, made_by=ref)
    old = registry.release("demo@v1").segments if version > 1 else ()
    release = Release(
        id=f"demo@v{version}",
        run="demo",
        task=version - 1,
        policy="versioned",
        merge="standardised",
        encoder=ref,
        segments=(*old, SegmentUse(segment, ref, ref)),
        metrics={"recall@1": 0.5 + version / 10},
        parent="demo@v1" if version > 1 else None,
    )
    registry.publish_release(release)
    if promote:
        registry.promote(release.id, by="test")
    return release.id


@pytest.fixture(scope="session")
def _published(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    scratch = tmp_path_factory.mktemp("gallery")
    torch.set_num_threads(1)
    names = [(colour, shape) for colour in COLOURS for shape in SHAPES] * 2
    items = tuple(
        Item(f"set/{row:02d}.png", shape, colour, (f"a {colour} {shape} number {row}",), (colour, shape), payload=known(row))
        for row, (colour, shape) in enumerate(names)
    )
    pictures = tuple(draw(colour, shape, row) for row, (colour, shape) in enumerate(names))
    gallery = Gallery(scratch / "registry", items, pictures)
    for version in (1, 2):
        publish_task(gallery, version, scratch)
    gallery.registry().promote("demo@v1", by="test")
    return gallery


@pytest.fixture
def gallery(_published: Gallery, tmp_path: Path) -> Gallery:
    """A registry with demo@v1 (live) and demo@v2, of its own for each test."""
    folder = tmp_path / "registry"
    shutil.copytree(_published.folder, folder)
    return Gallery(folder, _published.items, _published.pictures)


def damage(gallery: Gallery, kind: str, version: int, name: str) -> None:
    """Flip a byte in the middle of a published file."""
    (path,) = gallery.folder.glob(f"{kind}s/demo/v{version}/*/{name}")
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
