"""A run on pictures with words: what its report says of every index policy, and that a release under `keep` serves what was measured."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folder import enter

from perdure.checks import check
from perdure.config import RunConfig, parse
from perdure.encoders import load_encoder
from perdure.errors import ConfigError, Incompatible
from perdure.records import EncoderRef, Release
from perdure.registry.manifest import Manifest
from perdure.retrieval.calibration import fold_of
from perdure.retrieval.compensation import QUERY_DRIFT, QueryDrift, mean_drift
from perdure.retrieval.cross_modal import cross_modal_drift, cross_modal_recalls
from perdure.retrieval.evaluation import embed_split
from perdure.retrieval.retriever import Query, Retriever
from perdure.retrieval.routes import Routes
from perdure.run import StreamRun, learn_stream
from perdure.run import measures as measures_module

SMALL = {
    "name": "small",
    "stream": {
        "dataset": {"name": "scenes", "items": 180, "classes": 6, "size": 24},
        "kind": {"name": "class_incremental", "first": 2, "step": 2},
    },
    "encoder": {"name": "small_resnet", "image_size": 24, "width": 4, "embedding_dim": 16},
    "strategy": {"name": "fine_tune"},
    "train": {"epochs": 2, "batch_size": 24, "per_class": 6, "precision": "fp32", "lr": 0.01},
    "index": {"policy": "keep", "compensate": True},
    "workers": 0,
    "registry": "registry",
}
LAST = EncoderRef("small", 3)


def config(*overrides: str) -> RunConfig:
    return parse(SMALL, list(overrides))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder in which a run was learned, and its report."""
    folder = tmp_path_factory.mktemp("cross-modal")
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        return folder, learn_stream(config())


@pytest.fixture(autouse=True)
def here(learned: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    enter(learned[0], monkeypatch)


@pytest.fixture
def report(learned: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    return learned[1]


def test_the_report_holds_every_policy_and_the_drift_of_both_modalities_each_with_its_words(report: dict[str, Any]) -> None:
    section = report["cross_modal"]
    assert json.loads(json.dumps(section)) == section
    assert set(section) == {"policies", "drift"}
    assert set(section["policies"]) == {"reindex", "keep", "keep_compensated", "versioned"}
    matrix = section["policies"]["keep"]["unknown"]["t2i"]["recall@10"]["matrix"]
    assert [[value is None for value in row] for row in matrix] == [[j > t for j in range(3)] for t in range(3)]
    assert section["drift"]["text"]["displacement"]["matrix"][2][0] > 0
    told = {*section["policies"], "known", "unknown", "unknown_raw", "displacement", "cka"}
    assert {f"cross_modal.{word}" for word in told} <= report["definitions"].keys()


def test_it_is_computed_from_what_every_version_makes_of_the_test_rows(report: dict[str, Any]) -> None:
    run = StreamRun.open(config())
    tasks = run.prepared.stream.tasks
    versions = [
        embed_split(
            load_encoder(run.registry.folder(EncoderRef("small", version))),
            run.prepared.pixels,
            run.prepared.dataset.items,
            run.measures.test_rows(),
        )
        for version in (1, 2, 3)
    ]
    hops = [QueryDrift.load(run.registry.file(EncoderRef("small", version), QUERY_DRIFT)) for version in (2, 3)]
    assert report["cross_modal"] == {"policies": cross_modal_recalls(versions, tasks, hops), "drift": cross_modal_drift(versions, tasks)}


def test_reindexed_and_known_it_is_what_the_matrices_of_the_run_say(report: dict[str, Any]) -> None:
    known = report["cross_modal"]["policies"]["reindex"]["known"]
    for direction in ("i2t", "t2i"):
        for k in (1, 5, 10):
            matrix = report["metrics"][f"{direction}_recall@{k}"]["matrix"]
            found = known[direction][f"recall@{k}"]["matrix"]
            assert all(found[t][j] == pytest.approx(matrix[t][j]) for t in range(3) for j in range(t + 1))


def test_the_stored_drift_is_the_mean_over_the_new_tasks_training_items(report: dict[str, Any]) -> None:
    run = StreamRun.open(config())
    for version in (2, 3):
        rows = run.prepared.stream.tasks[version - 1].train
        before, after = (
            embed_split(load_encoder(run.registry.folder(EncoderRef("small", each))), run.prepared.pixels, run.prepared.dataset.items, rows)
            for each in (version - 1, version)
        )
        stored = QueryDrift.load(run.registry.file(EncoderRef("small", version), QUERY_DRIFT))
        assert stored.text is not None and before.text is not None and after.text is not None
        np.testing.assert_allclose(stored.image, mean_drift(before.image, after.image), atol=1e-6)
        np.testing.assert_allclose(stored.text, mean_drift(before.text, after.text), atol=1e-6)
        assert np.linalg.norm(stored.image) > 1e-3
    assert QUERY_DRIFT not in run.registry.manifest(EncoderRef("small", 1)).files, "nothing came before the first task"


def test_drift_is_measured_on_so_many_rows_at_most_and_on_none_of_another_task(monkeypatch: pytest.MonkeyPatch) -> None:
    run = StreamRun.open(config())
    task = run.prepared.stream.tasks[2]
    monkeypatch.setattr(measures_module, "_DRIFT_ROWS", 5)
    asked: list[Any] = []
    embed = measures_module.embed_split

    def noting(encoder: Any, pixels: Any, items: Any, rows: Any) -> Any:
        asked.append(rows)
        return embed(encoder, pixels, items, rows)

    monkeypatch.setattr(measures_module, "embed_split", noting)
    everything = np.concatenate([one.train for one in run.prepared.stream.tasks])  # as joint retraining reads it
    encoder = load_encoder(run.registry.folder(LAST))
    assert run.measures.hop(task, encoder, everything) is not None
    assert len(asked) == 2 and np.array_equal(asked[0], asked[1])
    assert len(asked[0]) == 5 and np.isin(asked[0], task.train).all() and asked[0][0] == task.train.min()
    nothing = run.measures.hop(task, encoder, task.train[:0])
    assert nothing is not None
    drift, bridge = nothing
    assert not drift.image.any() and drift.text is not None and not drift.text.any()
    same = np.eye(encoder.embedding_dim)
    assert np.array_equal(bridge.image, same) and bridge.text is not None and np.array_equal(bridge.text, same)


def test_the_release_says_that_it_compensates_and_what_it_serves_is_what_was_measured(report: dict[str, Any]) -> None:
    run = StreamRun.open(config())
    release = run.registry.release("small@v3")
    assert [use.compensated for use in release.segments] == [True, True, False]
    assert report["search"]["small@v3"]["compensated"] is True
    retriever = Retriever.load(run.registry, release)
    measured = report["cross_modal"]["policies"]["keep_compensated"]["unknown"]["t2i"]
    items = run.prepared.dataset.items
    for task in run.prepared.stream.tasks:
        pairs = [(items[int(row)].id, caption) for row in task.query for caption in items[int(row)].captions]
        found = retriever.search_many([Query(text=caption) for _, caption in pairs], 10)
        for k in (1, 5, 10):
            served = np.mean([own in [hit.id for hit in result.hits[:k]] for (own, _), result in zip(pairs, found, strict=True)])
            assert served == pytest.approx(measured[f"recall@{k}"]["matrix"][2][task.index])
            assert report["search"]["small@v3"][f"search_t2i_recall@{k}"][task.index] == pytest.approx(served)


def test_a_learned_run_is_laid_under_compensation_afterwards_and_its_segments_stay(report: dict[str, Any]) -> None:
    run = StreamRun.open(config())
    before = run.registry.segments("small")
    previous = None
    for task in run.prepared.stream.tasks:
        plain = config("index.compensate=false").index
        previous = run.publish_release(task, EncoderRef("small", task.index + 1), plain, previous)
    assert previous is not None and not previous.compensated
    assert run.registry.segments("small") == before
    searched = run.report()["search"]
    assert "compensated" not in searched[previous.id]
    assert searched[previous.id]["search_t2i_recall@10"] != searched["small@v3"]["search_t2i_recall@10"]


def test_a_learned_run_is_laid_under_the_bridge_and_answers_by_it() -> None:
    run = StreamRun.open(config())
    previous = None
    for task in run.prepared.stream.tasks:
        index = config("index.compensate=bridge").index
        previous = run.publish_release(task, EncoderRef("small", task.index + 1), index, previous)
    assert previous is not None and [use.compensated for use in previous.segments] == ["bridge", "bridge", False]
    retriever = Retriever.load(run.registry, previous)
    row = int(run.prepared.stream.tasks[0].query[0])
    assert len(retriever.search(Query(id=run.prepared.dataset.items[row].id), 5).hits) == 5


def test_versions_of_before_there_was_a_drift_are_reported_without_compensation_and_are_not_released_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = StreamRun.open(config())
    manifest = run.registry.manifest

    def older(ref: Any) -> Manifest:
        found = manifest(ref)
        found.files.pop(QUERY_DRIFT, None)
        return found

    monkeypatch.setattr(run.registry, "manifest", older)
    assert set(run.measures.cross_modal()["policies"]) == {"reindex", "keep", "versioned"}
    with pytest.raises(Incompatible, match="choose index"):
        run.measures.search(run.registry.release("small@v3"), run.prepared.stream.tasks[2])


def test_pictures_alone_have_a_drift_and_no_such_section() -> None:
    report = learn_stream(config("name=silent", "encoder.text=none", "stream.kind.tasks=2"))
    assert "cross_modal" not in report and "cross_modal" not in report["definitions"]
    registry = StreamRun.open(config("name=silent", "encoder.text=none", "stream.kind.tasks=2")).registry
    assert QueryDrift.load(registry.file(EncoderRef("silent", 2), QUERY_DRIFT)).text is None
    found = Retriever.load(registry, "silent@v2")
    assert len(found.search(Query(id=found.segments[0].table.ids[0]), 3).hits) == 3


@pytest.mark.parametrize("policy", ["reindex", "versioned"])
def test_compensation_is_refused_with_another_policy(policy: str) -> None:
    with pytest.raises(ConfigError, match=rf"compensate=true with policy={policy}: .*choose policy=keep"):
        check(config(f"index.policy={policy}"))


def test_joint_training_may_leave_out_negatives_of_other_tasks_and_nothing_else_changes() -> None:
    """With negatives of other tasks it is the bound of an unknown task, without them that of a known one."""
    terms = {}
    for which in ("all", "within_task"):
        ranking = f"strategy={{name: joint, ranking: {{triplet: 0, cross_entropy: 0, pair_negatives: {which}}}}}"
        made = config(f"name=joint-{which}", ranking, "stream.kind.tasks=2", "index={}", "train.max_steps=3")
        report = learn_stream(made)
        terms[which] = [entry["curves"]["pairs"] for entry in report["train"]]
    assert terms["all"][0] == terms["within_task"][0], "the first task has no other"
    assert terms["all"][1][0] != terms["within_task"][1][0]


def test_a_merge_that_is_not_learned_estimates_no_task_and_looks_at_no_training_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(tmp_path, monkeypatch)
    report = learn_stream(config("index.policy=versioned", "index.compensate=false", "index.merge=standardised"))
    assert "unknown_routed" not in report["cross_modal"]["policies"]["versioned"]
    assert not [*tmp_path.rglob("*-task*.npz")]


def test_under_versioned_the_task_of_a_query_is_estimated_from_new_items_alone(
    learned: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Routed equals what the releases' own fits say; older encoders see training items of the task that comes, and of no other."""
    shutil.copytree(learned[0], tmp_path / "copy")
    enter(tmp_path / "copy", monkeypatch)
    run = StreamRun.open(config())
    tasks, refs = run.prepared.stream.tasks, [EncoderRef("small", version) for version in (1, 2, 3)]
    index = run.config.index.model_copy(update={"policy": "versioned", "compensate": False})
    releases: list[Release] = []
    for task, ref in zip(tasks, refs, strict=True):
        releases.append(run.publish_release(task, ref, index, releases[-1] if releases else None))
    found = run.measures.cross_modal()["policies"]
    items = run.prepared.dataset.items
    routers = [[fit.router for fit in run.measures.calibrations(release)] for release in releases]
    routes = Routes(refs, routers, {int(row): fold_of(items[int(row)].id) for task in tasks for row in task.query})
    versions = [run.measures.embeddings(ref) for ref in refs]
    assert found["versioned"] == cross_modal_recalls(versions, tasks, None, routes)["versioned"]
    assert {"unknown_routed"} == found["versioned"].keys() - found["keep"].keys()
    seen = {}
    for path in (run.folder / "embeddings").glob("*-task*.npz"):
        version, task = map(int, re.findall(r"-v(\d+)-task(\d+)", path.name)[0])
        with np.load(path) as arrays:
            seen[version, task] = np.isin(arrays["rows"], tasks[task - 1].train).all() and len(arrays["rows"]) > 0
    assert seen == {(1, 2): True, (1, 3): True, (2, 3): True}
