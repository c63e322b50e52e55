"""Galleries that are embedded on workers: the vectors of one process, in its order, whoever dies, from wherever it stopped."""

import json
import os
import runpy
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray_processes import ray_processes
from run_folder import enter

from perdure.cluster import embed
from perdure.cluster.embed import RayEmbedder, embedder
from perdure.config import WorkersConfig, parse
from perdure.console import guarded
from perdure.encoders import Encoder, build_encoder
from perdure.errors import BadQuery, Unavailable
from perdure.index.segment import load_segment
from perdure.progress import SilentProgress
from perdure.records import Release
from perdure.registry import Registry, open_registry
from perdure.retrieval.embedding import embed_here
from perdure.run import StreamRun, learn_stream

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_session")]

JOBS = Path(__file__).resolve().parents[2] / "jobs"
TWO = WorkersConfig(num=2, threads=1)


def encoder_of(*, text: str = "bilstm", seed: int = 0) -> Encoder:
    made = build_encoder(
        "small_resnet", {"image_size": 24, "width": 4, "embedding_dim": 16, "text": text}, with_text=text != "none", seed=seed
    )
    made.grow(num_classes=2, captions=["a red circle", "a blue star"])
    return made.eval()


def pictures(count: int) -> list[np.ndarray]:
    """Batches of pixels, the last one shorter."""
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (8 if at < count - 1 else 3, 24, 24, 3), dtype=np.uint8) for at in range(count)]


def equal(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    return len(ours) == len(theirs) and all(np.array_equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def test_pictures_and_texts_have_the_vectors_of_one_process_in_its_order() -> None:
    torch.set_num_threads(1)
    encoder, batches = encoder_of(), [*pictures(9), ["a red star", "a blue circle"]]
    with RayEmbedder(TWO, SilentProgress()) as spread:
        assert equal(list(spread(encoder, batches)), list(embed_here(encoder, batches)))
        other = encoder_of(seed=1)
        assert equal(list(spread(other, batches[:3])), list(embed_here(other, batches[:3])))


def test_no_more_batches_are_drawn_than_the_workers_can_have_at_hand() -> None:
    drawn = 0

    def drawing() -> Iterator[np.ndarray]:
        nonlocal drawn
        for batch in pictures(30):
            drawn += 1
            yield batch

    with RayEmbedder(TWO, SilentProgress()) as spread:
        for done, _ in enumerate(spread(encoder_of(), drawing()), start=1):
            assert drawn <= done + 2 * 2
    assert done == drawn == 30


def test_a_worker_that_is_killed_changes_nothing() -> None:
    encoder, batches = encoder_of(), pictures(40)
    with RayEmbedder(TWO, SilentProgress()) as spread:
        ours: list[np.ndarray] = []
        for vectors in spread(encoder, batches):
            ours.append(vectors)
            if len(ours) in (5, 20):
                os.kill(ray_processes("_Embedder", of=os.getpid())[0], signal.SIGKILL)
        assert equal(ours, list(embed_here(encoder, batches)))


def test_more_deaths_than_a_run_survives_are_told() -> None:
    workers = TWO.model_copy(update={"max_failures": 0})
    with RayEmbedder(workers, SilentProgress()) as spread, pytest.raises(Unavailable, match=r"1 workers? died .*workers.max_failures=0"):
        for _ in spread(encoder_of(), pictures(200)):
            for pid in ray_processes("_Embedder", of=os.getpid()):
                os.kill(pid, signal.SIGKILL)


def test_what_was_done_before_a_stop_is_not_computed_again(tmp_path: Path) -> None:
    encoder, batches, keep = encoder_of(), pictures(12), tmp_path / "parts"
    with RayEmbedder(TWO, SilentProgress(), keep=keep) as spread:
        first = spread(encoder, batches)
        begun = [next(first) for _ in range(5)]
        first.close()  # type: ignore[attr-defined]
    before = {path.name: path.stat().st_mtime_ns for path in keep.glob("*.npy")}
    assert 5 <= len(before) < 12
    with RayEmbedder(TWO, SilentProgress(), keep=keep) as spread:
        again = list(spread(encoder, batches))
        after = {path.name: path.stat().st_mtime_ns for path in keep.iterdir()}
        assert len(after) == 12 and before.items() <= after.items()
        assert equal(again, list(embed_here(encoder, batches))) and equal(again[:5], begun)
        other = encoder_of(seed=1)
        assert equal(list(spread(other, batches[:2])), list(embed_here(other, batches[:2]))), "a part is of one encoder"
        spread.forget()
    assert not keep.exists()


def test_what_a_worker_refuses_is_told_as_it_would_be_here() -> None:
    with RayEmbedder(TWO, SilentProgress()) as spread, pytest.raises(BadQuery, match="no text tower"):
        list(spread(encoder_of(text="none"), [["a text"]]))


@pytest.mark.parametrize(("workers", "items", "spread"), [(0, 10**6, False), (1, 10**6, False), (2, 10, False), ([1, 2], 10**6, True)])
def test_only_many_items_of_a_run_with_workers_leave_the_process(workers: Any, items: int, spread: bool) -> None:
    with embedder(parse({"workers": workers}), items, SilentProgress()) as chosen:
        assert (chosen is not embed_here) == spread


# -- the jobs


RUN = {
    "name": "spread",
    "stream": {
        "dataset": {"name": "scenes", "items": 180, "classes": 6, "size": 24},
        "kind": {"name": "class_incremental", "first": 2, "step": 2},
    },
    "encoder": {"name": "small_resnet", "image_size": 24, "width": 4, "embedding_dim": 16},
    "strategy": {"name": "fine_tune"},
    "train": {"epochs": 1, "batch_size": 24, "per_class": 6, "precision": "fp32", "max_steps": 2},
    "index": {"policy": "backfilling"},
    "workers": 0,
    "registry": "registry",
}


def job(name: str, *arguments: str) -> int:
    return guarded(runpy.run_path(str(JOBS / name))["main"], list(arguments))


def vectors_of(registry: Registry, release: Release) -> dict[str, np.ndarray]:
    """By item and encoder."""
    out: dict[str, np.ndarray] = {}
    for use in release.segments:
        segment = load_segment(registry.files(use.segment), ref=use.segment, made_by=use.made_by)
        rows = segment.vectors(np.arange(len(segment), dtype=np.int64))
        out |= {f"{use.made_by} {item}": row for item, row in zip(segment.table.ids, rows, strict=True)}
    return out


def test_both_jobs_publish_the_same_vectors_by_workers_as_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(tmp_path, monkeypatch)
    monkeypatch.setattr(embed, "SMALL", 1)
    torch.set_num_threads(1)
    learn_stream(parse(RUN))
    (tmp_path / "run.yaml").write_text(json.dumps(RUN))
    registry, cached = open_registry("registry"), tmp_path / "runs/spread/embeddings"
    for path in cached.glob("*.npz"):
        path.unlink()
    assert job("index.py", "run.yaml", "index.policy=reindex", "workers.num=2", "workers.threads=1") == 0
    of_tests = {f"spread-v{version}.npz" for version in (1, 2, 3)}
    of_new_items = {f"spread-v{version}-task{task}.npz" for version, task in ((1, 2), (1, 3), (2, 3))}
    assert {path.name for path in cached.glob("*.npz")} == of_tests | of_new_items and not (cached / "parts").exists()
    laid = vectors_of(registry, registry.releases("spread")[-1])
    expected = StreamRun.open(parse(RUN)).measures
    for path in cached.glob("*.npz"):
        path.unlink()
    newest = registry.encoders("spread")[-1]
    here = expected.embeddings(newest)
    ids = [expected.prepared.dataset.items[int(row)].id for row in here.rows]
    assert laid and set(laid) <= {f"{newest} {item}" for item in ids}
    assert all(
        np.array_equal(laid[f"{newest} {item}"], row) for item, row in zip(ids, here.image, strict=True) if f"{newest} {item}" in laid
    )

    moves = ("--slice", "20", "--tolerance", "1", "--items", "20")
    assert job("backfill.py", "spread@v3", *moves, "--workers", "2") == 0
    moved = registry.releases("spread")[-1]
    with pytest.MonkeyPatch.context() as patch:
        other = tmp_path / "other"
        other.mkdir()
        enter(other, patch)
        learn_stream(parse(RUN))
        assert job("backfill.py", "spread@v3", *moves) == 0
        theirs = open_registry("registry")
        assert {key: row.tolist() for key, row in vectors_of(theirs, theirs.releases("spread")[-1]).items()} == {
            key: row.tolist() for key, row in vectors_of(registry, moved).items()
        }
