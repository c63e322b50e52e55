"""A stream of modalities from its ready-made config to the page, as small as it gets, in one process."""

import json
from pathlib import Path
from typing import Any

import pytest

from perdure import pipeline
from perdure.checks import check
from perdure.config import RunConfig, load
from perdure.errors import ConfigError
from perdure.registry import open_registry
from perdure.report import write_run_html
from perdure.report.tables import summary_table
from perdure.retrieval.modalities import MODALITY_DEFINITIONS
from perdure.retrieval.retriever import Query, Retriever
from perdure.run import StreamRun, learn_stream

CONFIG = Path(__file__).resolve().parents[1] / "jobs" / "configs" / "scenes_modalities.yaml"
TINY = (
    "stream.dataset.of={name: scenes, items: 240, classes: 4, size: 24}",
    "encoder={name: small_resnet, image_size: 24, width: 4, embedding_dim: 16, joint: {hidden: 16}}",
    "train={epochs: 2, batch_size: 16, per_class: 4, precision: fp32, flip: false}",
    "strategy.items=32",
    "workers=0",
)
SEEN = "stream.dataset.modalities=[image, sketch]"


def config(*overrides: str) -> RunConfig:
    return load(CONFIG, [*TINY, *overrides])


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, dict[str, Any], StreamRun]:
    """The run, learned once for the tests that look at it."""
    here = tmp_path_factory.mktemp("modalities")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv("PERDURE_CACHE", str(here / "cache"))
        patch.setenv("PERDURE_RUNS", str(here / "runs"))
        own = config(f"registry={here / 'registry'}")
        report = learn_stream(own)
        return own, report, StreamRun.open(own)


Learned = tuple[RunConfig, dict[str, Any], StreamRun]


def test_each_task_is_a_modality_with_its_row_of_the_matrix_and_forgetting_is_told_as_always(learned: Learned) -> None:
    _, report, _ = learned
    assert [task["name"] for task in report["tasks"]] == ["image", "text", "sketch"]
    assert len({tuple(task["classes"]) for task in report["tasks"]}) == 1
    matrix = report["metrics"]["recall@1"]["matrix"]
    assert len(matrix) == 3 and all(0 <= value <= 1 for row in matrix for value in row)
    assert report["summary"]["forgetting"] is not None
    assert not any(name.startswith(("t2i_", "i2t_")) for name in report["metrics"]), "nothing is paired"
    assert report["train"][2]["terms"].keys() == {"triplet", "cross_entropy", "prototypes"}


def test_retrieval_across_modalities_is_told_with_its_definitions_and_null_before_both_were_learned(learned: Learned) -> None:
    _, report, _ = learned
    assert report["modalities"]["order"] == ["image", "text", "sketch"]
    assert len(report["modalities"]["pairs"]) == 6
    for pair in report["modalities"]["pairs"]:
        first = max(["image", "text", "sketch"].index(pair[end]) for end in ("query", "gallery"))
        for key in ("recall@1", "map"):
            assert [value is None for value in pair[key]] == [task < first for task in range(3)]
    assert all(report["definitions"][key] == text for key, text in MODALITY_DEFINITIONS.items())
    assert "across modalities after the last task" in summary_table(report)


def test_no_item_of_an_earlier_task_is_read_and_words_count_as_read(learned: Learned) -> None:
    _, report, run = learned
    reads = [set(json.loads((run.folder / "reads" / f"{task:03d}.json").read_text())) for task in range(3)]
    assert [{item.partition("/")[0] for item in read} for read in reads] == [{"image"}, {"text"}, {"sketch"}]
    assert [len(read) for read in reads] == [task["train"] for task in report["tasks"]]


def test_a_release_holds_every_modality_and_is_searched_by_picture_by_words_and_by_id(learned: Learned) -> None:
    own, report, run = learned
    registry = open_registry(own.registry)
    retriever = Retriever.load(registry, registry.release(report["releases"][-1]))
    ids = {key for segment in retriever.segments for key in segment.table.ids}
    assert {key.partition("/")[0] for key in ids} == {"image", "text", "sketch"}
    for query in (
        Query(text="a striped circle"),
        Query(image=run.prepared.dataset.image_bytes(0)),
        *(Query(id=key) for key in sorted(ids)),
    ):
        found = retriever.search(query, k=4)
        assert len(found.hits) == 4
        for hit in found.hits:
            assert retriever.picture(hit.id), "words have a card to show"
    words = sorted(key for key in ids if key.startswith("text/"))[0]
    item = next(item for item in run.prepared.dataset.items if item.id == words)
    best = retriever.search(Query(text=item.captions[0]), k=1).hits[0]
    assert best.score == pytest.approx(1.0, abs=1e-5), "words are found by themselves"


def test_the_page_shows_queries_of_every_modality_and_the_table_of_pairs(learned: Learned) -> None:
    _, _, run = learned
    page = write_run_html(run.folder).read_text()
    assert "Across modalities" in page and "sketch → text" in page
    assert "of the class that the words are about" in page and "Search by picture" in page
    examples = json.loads((run.folder / "examples.json").read_text())
    assert {example["kind"] for example in examples} == {"image", "words"}
    assert all(len(example["hits"]) == 6 for example in examples)


def test_a_second_start_gives_the_same_report(learned: Learned, monkeypatch: pytest.MonkeyPatch) -> None:
    own, report, run = learned
    monkeypatch.setenv("PERDURE_RUNS", str(run.folder.parent))
    assert learn_stream(own) == report


@pytest.mark.parametrize(
    "overrides",
    [
        ("strategy=fine_tune", "encoder.joint=null"),
        ("strategy=lwf", "stream.kind.order=[text, sketch]", "encoder.classifier=linear"),
        ("strategy={name: ewc, items: 8, group: 8}", "index.policy=versioned"),
        ("strategy=joint", "encoder.whitening={dim: 8}"),
        ("strategy=correlation", "stream.kind={name: class_incremental, first: 2, step: 2}", "index.policy=keep"),
        ("strategy={name: dual, inversion: {pictures: 8, iterations: 2}}", SEEN, "stream.kind.order=null"),
        ("strategy=feature_extraction", "stream.dataset.unpaired=false", "train.max_steps=2"),
    ],
    ids=lambda given: given[0].removeprefix("strategy=").strip("{").split(",")[0].removeprefix("name: "),
)
def test_other_strategies_encoders_and_policies_run_on_modalities(overrides: tuple[str, ...], here: Path) -> None:
    report = learn_stream(load(CONFIG, [*(each for each in TINY if not each.startswith("strategy")), *overrides]))
    assert all(value is not None for row in report["metrics"]["recall@1"]["matrix"] for value in row)
    assert len(report["releases"]) == len(report["tasks"])
    write_run_html(here / "runs" / report["name"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("encoder.joint=null",), r"strategy=meta_sequential: .*set encoder.joint={hidden: 256}"),
        (("strategy=dual",), r"strategy=dual: it makes up pictures.*choose another strategy"),
        (("encoder.joint={hiden: 3}",), r"joint"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_learned(overrides: tuple[str, ...], words: str) -> None:
    asked = load(CONFIG, [*(each for each in TINY if not each.startswith("strategy")), *overrides])
    assert len(check(asked)) == 1
    with pytest.raises(ConfigError, match=words):
        learn_stream(asked)


def test_words_without_a_text_tower_are_refused(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"encoder.text=none: some items of this stream are words alone"):
        pipeline.prepare(config("encoder.text=none"))


def test_a_first_task_is_taken_over_with_its_prototypes(here: Path) -> None:
    plain = [each for each in TINY if not each.startswith("strategy")]
    learn_stream(load(CONFIG, [*plain, "name=plain", "strategy=fine_tune"]))
    taken = learn_stream(config("name=taken", "train.start_from=plain"))
    alone = learn_stream(config("name=alone"))
    assert taken["metrics"] == alone["metrics"] and taken["modalities"] == alone["modalities"]
