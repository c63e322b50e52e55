"""A learned run under every merge: what is fitted, stored, served and measured."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_folder import enter

from perdure.config import RunConfig, parse
from perdure.errors import ConfigError
from perdure.records import EncoderRef
from perdure.retrieval import Query, Retriever
from perdure.retrieval.merging import MERGES
from perdure.run import StreamRun, learn_stream

SMALL = {
    "name": "merged",
    "stream": {
        "dataset": {"name": "scenes", "items": 180, "classes": 6, "size": 24},
        "kind": {"name": "class_incremental", "first": 2, "step": 2},
    },
    "encoder": {"name": "small_resnet", "image_size": 24, "width": 4, "embedding_dim": 16},
    "strategy": {"name": "fine_tune"},
    "train": {"epochs": 1, "batch_size": 24, "per_class": 6, "precision": "fp32", "max_steps": 2},
    "index": {"policy": "versioned", "merge": "routed", "both": True},
    "workers": 0,
    "registry": "registry",
}


def config(*overrides: str) -> RunConfig:
    return parse(SMALL, list(overrides))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("merged")
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        return folder, learn_stream(config())


@pytest.fixture
def run(learned: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> StreamRun:
    enter(learned[0], monkeypatch)
    return StreamRun.open(config())


def test_each_new_item_is_in_a_segment_of_every_encoder_so_far(run: StreamRun) -> None:
    for task, release in enumerate(run.registry.releases("merged")):
        makers = [use.made_by for use in release.segments]
        assert len(makers) == (task + 1) * (task + 2) // 2 and all(use.made_by == use.queried_by for use in release.segments)
        for version in range(1, task + 2):
            files = [run.registry.manifest(use.segment).meta for use in release.segments if use.made_by == EncoderRef("merged", version)]
            assert sorted(number for meta in files for number in meta["tasks"]) == list(range(version - 1, task + 1))


def test_the_calibration_knows_every_pair_of_tasks_and_the_release_answers_by_it(run: StreamRun) -> None:
    release = run.registry.releases("merged")[-1]
    retriever = Retriever.load(run.registry, release)
    assert retriever.calibration is not None and release.calibration is not None
    known = {tuple(sorted({*map(int, view.task)})) for view in retriever.calibration.router.views}
    assert (0, 1, 2) in known and (1, 2) in known
    row = int(run.prepared.stream.tasks[0].query[0])
    result = retriever.search(Query(id=run.prepared.dataset.items[row].id), 5)
    assert len({hit.id for hit in result.hits}) == 5 and all(0 <= hit.score <= 1 for hit in result.hits)


def test_every_merge_is_measured_after_the_fact_and_the_released_one_says_the_same(
    run: StreamRun, learned: tuple[Path, dict[str, Any]]
) -> None:
    report = learned[1]
    release = run.registry.releases("merged")[-1]
    measured = run.measures.merges(release, run.prepared.stream.tasks[-1])
    assert tuple(measured) == MERGES
    for row in measured.values():
        assert all(len(values) == 3 and all(0 <= value <= 1 for value in values) for values in row.values())
    assert {name: report["search"]["merged@v3"][name] for name in measured["routed"]} == measured["routed"]
    assert json.loads((run.folder / "report.json").read_text())["search"]["merged@v3"]["merge"] == "routed"


@pytest.mark.parametrize("override", ["index.merge=routed", "index.merge=calibrated", "index.both=true"])
def test_what_only_versioned_vectors_can_have_is_refused_under_keep(override: str) -> None:
    plain = {**SMALL, "index": {"policy": "keep"}}
    with pytest.raises(ConfigError, match="choose policy=versioned or backfilling"):
        parse(plain, [override])


def test_a_run_that_kept_old_vectors_before_is_routed_from_then_on(run: StreamRun) -> None:
    tasks, old = run.prepared.stream.tasks, run.config.index.model_copy(update={"policy": "keep", "merge": "auto", "both": False})
    new = old.model_copy(update={"policy": "versioned"})
    first = run.publish_release(tasks[0], EncoderRef("merged", 1), old, None)
    kept = run.publish_release(tasks[1], EncoderRef("merged", 2), old, first)
    routed = run.publish_release(tasks[2], EncoderRef("merged", 3), new, kept)
    assert (kept.merge, kept.calibration, routed.merge) == ("standardised", None, "routed")
    assert routed.calibration is not None and {use.made_by.version for use in routed.segments} == {1, 2, 3}
