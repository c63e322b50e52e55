"""Releases that must never go live: the one before answers on, and whoever looks is told why. The same claims in every topology."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHAPES, Gallery, damage, make_encoder, publish_task
from serving_suite import Server, Suite, ids, wait

from perdure.encoders import Encoder, build_encoder, save_encoder
from perdure.index import build_segment
from perdure.records import Release, SegmentUse
from perdure.retrieval.retriever import Query, encode


def flipped_byte(gallery: Gallery, version: int, scratch: Path) -> None:
    publish_task(gallery, version, scratch)
    damage(gallery, "segment", version, "table.parquet")


def missing_partition(gallery: Gallery, version: int, scratch: Path) -> None:
    publish_task(gallery, version, scratch)
    (path,) = gallery.folder.glob(f"segments/demo/v{version}/*/partition-0002.faiss")
    path.unlink()


def partition_never_published(gallery: Gallery, version: int, scratch: Path) -> None:
    publish_parts(gallery, version, scratch, make_encoder(version, captions(gallery)), leave_out="partition-0001.faiss")


def wrong_dimension(gallery: Gallery, version: int, scratch: Path) -> None:
    """The encoder gives D = 8, its segment was made with D = 16."""
    encoder = build_encoder("small_resnet", {"embedding_dim": 8, "width": 4}, with_text=True, seed=version)
    encoder.grow(num_classes=len(SHAPES), captions=captions(gallery))
    publish_parts(gallery, version, scratch, encoder.eval())


def encoder_that_refuses_to_load(gallery: Gallery, version: int, scratch: Path) -> None:
    publish_parts(gallery, version, scratch, make_encoder(version, captions(gallery)), weights=b"these are no weights")


def encoder_of_nothing(gallery: Gallery, version: int, scratch: Path) -> None:
    """Its weights are not numbers."""
    encoder = make_encoder(version, captions(gallery))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.fill_(torch.nan)
    publish_parts(gallery, version, scratch, encoder)


def captions(gallery: Gallery) -> list[str]:
    return [item.captions[0] for item in gallery.items]


def publish_parts(
    gallery: Gallery, version: int, scratch: Path, encoder: Encoder, *, leave_out: str = "", weights: bytes | None = None
) -> None:
    """A release whose parts are in the registry whole, and wrong."""
    registry = gallery.registry()
    save_encoder(encoder, scratch / "encoder")
    published: dict[str, Any] = {path.name: path for path in (scratch / "encoder").iterdir()}
    if weights is not None:
        published["weights.safetensors"] = weights
    ref = registry.publish_encoder("demo", version, published)
    vectors = encode(make_encoder(version, captions(gallery)), list(gallery.pictures))
    assert vectors.shape == (30, 16) and np.isfinite(vectors).all()
    files = build_segment(vectors, list(gallery.items), task=0, partitions=3, folder=scratch / "segment")
    segment = registry.publish_segment("demo", version, {name: data for name, data in files.items() if name != leave_out}, made_by=ref)
    registry.publish_release(Release(f"demo@v{version}", "demo", 0, "reindex", "raw", ref, (SegmentUse(segment, ref, ref),)))


BAD: list[tuple[Callable[[Gallery, int, Path], None], tuple[str, ...]]] = [
    (flipped_byte, ("damaged", "table.parquet")),
    (missing_partition, ("gone", "partition-0002.faiss")),
    (partition_never_published, ("not those of a segment", "partition-0001")),
    (wrong_dimension, ("D=8", "D=16")),
    (encoder_that_refuses_to_load, ("encoder", "cannot be read")),
    (encoder_of_nothing, ("unit length",)),
]


class BadReleaseSuite(Suite):
    """Needs a fixture `server`."""

    @pytest.mark.parametrize(("spoil", "words"), BAD, ids=lambda value: getattr(value, "__name__", None))
    def test_a_bad_release_never_answers_and_the_reason_is_told(
        self, server: Server, spoil: Callable[[Gallery, int, Path], None], words: tuple[str, ...]
    ) -> None:
        version = 1 + max(int(release.id.rpartition("v")[2]) for release in server.gallery.registry().releases())
        bad, scratch = f"demo@v{version}", server.scratch / f"bad-{version}"
        scratch.mkdir()
        spoil(server.gallery, version, scratch)
        assert server.client.post(f"/v1/releases/{bad}/promote").status_code == 200  # its manifests are whole
        state = server.wait(bad, lambda state: state["live"] == bad and all(word in (state["problem"] or "") for word in words))
        assert state["serving"] == "demo@v1"
        ready = server.client.get("/readyz")
        assert ready.status_code == 200 and ready.json()["serving"] == "demo@v1" and ready.json()["problem"] == state["problem"]
        wait(lambda: any(self._says_why(line, bad) and words[-1] in line for line in self._lines(server)), "the metric")
        found = server.search(text="a red circle", k=5)
        assert found.json()["release"] == "demo@v1" and ids(found) == server.expected("demo@v1", Query(text="a red circle"), 5)
        assert server.client.post("/v1/rollback").json()["id"] == "demo@v1"
        server.wait("no problem", lambda state: state["problem"] is None and state["serving"] == "demo@v1")
        wait(lambda: not any(self._says_why(line, bad) for line in self._lines(server)), "it is mended")

    @staticmethod
    def _lines(server: Server) -> list[str]:
        return server.client.get("/metrics").text.splitlines()

    @staticmethod
    def _says_why(line: str, release: str) -> bool:
        return line.startswith(f'perdure_live_not_serving{{release="{release}"') and line.endswith(" 1.0")
