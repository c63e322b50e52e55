"""Gates: what a release loses beside the one before is in its manifest, and promotion refuses one that loses too much."""

from pathlib import Path

import numpy as np
import pytest
from run_folder import enter

from perdure.config import RunConfig, parse
from perdure.errors import GateRefused
from perdure.registry import open_registry
from perdure.run import learn_stream
from perdure.run.gates import first_hits_right

SMALL = {
    "name": "gated",
    "stream": {
        "dataset": {"name": "scenes", "items": 180, "classes": 6, "size": 24},
        "kind": {"name": "class_incremental", "first": 2, "step": 2},
    },
    "encoder": {"name": "small_resnet", "image_size": 24, "width": 4, "embedding_dim": 16},
    "strategy": {"name": "fine_tune"},
    "train": {"epochs": 1, "batch_size": 24, "per_class": 6, "precision": "fp32", "max_steps": 2},
    "workers": 0,
    "registry": "registry",
}


def config(*overrides: str) -> RunConfig:
    return parse(SMALL, list(overrides))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gated")
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        learn_stream(config())
    return folder


@pytest.fixture
def here(learned: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    enter(learned, monkeypatch)
    return learned


def gates(name: str) -> list[dict[str, dict[str, float]]]:
    """Of each release of a run, by the gate's name."""
    return [{gate["name"]: gate for gate in release.metrics["gates"]} for release in open_registry("registry").releases(name)]


def test_first_hits_are_those_of_a_loop_over_pairs() -> None:
    draw = np.random.default_rng(0)
    queries, gallery = draw.standard_normal((30, 4)).astype(np.float32), draw.standard_normal((20, 4)).astype(np.float32)
    query_labels, gallery_labels = draw.integers(0, 3, 30), draw.integers(0, 3, 20)
    query_ids, gallery_ids = np.arange(30), np.arange(10, 30)
    expected = []
    for q in range(30):
        others = [(float(queries[q] @ gallery[g]), g) for g in range(20) if query_ids[q] != gallery_ids[g]]
        expected.append(gallery_labels[max(others)[1]] == query_labels[q])
    found = first_hits_right(queries, gallery, query_labels, gallery_labels, query_ids, gallery_ids)
    assert found.tolist() == expected and 0 < sum(expected) < 30
    alone = first_hits_right(queries[:1], gallery[:1], query_labels[:1], query_labels[:1], query_ids[:1], query_ids[:1])
    assert alone.tolist() == [False], "a picture does not find itself"


def test_forgetting_is_what_the_matrix_of_the_report_says(here: Path) -> None:
    report = learn_stream(config())
    recall = report["metrics"]["recall@1"]["matrix"]
    told = gates("gated")
    assert told[0] == {}
    for t in (1, 2):
        for s in range(t):
            assert told[t][f"forgetting of task {s + 1}"]["found"] == pytest.approx(recall[t - 1][s] - recall[t][s], abs=1e-4)
            flips = told[t][f"negative flips of task {s + 1}"]
            assert flips["limit"] is None and flips["passed"] and 0 <= flips["found"] <= 1
            assert flips["found"] >= told[t][f"forgetting of task {s + 1}"]["found"]


@pytest.mark.parametrize("both", [False, True])
def test_versioned_forgets_nothing(here: Path, both: bool) -> None:
    name = f"old_{both}".lower()
    learn_stream(config(f"name={name}", "index.policy=versioned", f"index.both={str(both).lower()}", "train.start_from=gated"))
    told = gates(name)
    assert len(told[2]) == 4 and all(gate["found"] == 0 for release in told for gate in release.values())


def test_a_release_that_loses_too_much_is_not_promoted_but_by_force(here: Path) -> None:
    learn_stream(config("name=strict", "index.policy=keep", "gates.negative_flips=0", "gates.forgetting=1", "train.start_from=gated"))
    registry = open_registry("registry")
    registry.promote("strict@v1")
    failed = [gate for gate in registry.release("strict@v3").metrics["gates"] if not gate["passed"]]
    assert failed and all(gate["name"].startswith("negative flips of task") and gate["found"] > 0 for gate in failed)
    with pytest.raises(GateRefused, match=r"negative flips of task \d: found 0\.\d+, limit 0"):
        registry.promote("strict@v3")
    assert registry.promote("strict@v3", force=True).id == "strict@v3"
    assert registry.journal()[-1]["forced"], "the journal says which gates were passed by"


def test_an_approximate_index_says_how_much_of_the_exact_search_it_finds(here: Path) -> None:
    learn_stream(config("name=graph", "index.kind=hnsw", "train.start_from=gated"))
    gate = gates("graph")[0]["approximate search"]
    assert gate["passed"] and 0.8 <= gate["found"] <= 1 and "approximate search" not in gates("gated")[0]
