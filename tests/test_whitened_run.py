"""A whole run in one process with PCA and whitening behind the encoder: what is fitted, on which rows, and what does not change by it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from perdure.checks import check, resolved
from perdure.config import RunConfig, parse
from perdure.encoders import Encoder, fit_whitening, load_encoder
from perdure.errors import ConfigError
from perdure.identity import fingerprint, first_task_fingerprint
from perdure.records import EncoderRef
from perdure.registry import open_registry
from perdure.retrieval.evaluation import embed_split
from perdure.retrieval.retriever import Query, Retriever
from perdure.run import StreamRun, learn_stream

SMALL = {
    "name": "white",
    "stream": {
        "dataset": {"name": "scenes", "items": 120, "classes": 4, "size": 24},
        "kind": {"name": "class_incremental", "first": 2, "step": 2},
    },
    "encoder": {"name": "small_resnet", "image_size": 24, "width": 4, "embedding_dim": 16, "whitening": {"dim": 6}},
    "train": {"epochs": 1, "batch_size": 12, "per_class": 6, "max_steps": 2, "precision": "fp32"},
    "workers": 0,
    "registry": "registry",
}


@pytest.fixture(autouse=True)
def without_pictures(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.run.stream_run.save_pictures", lambda *_: None)  # of the report, which nothing here reads


def config(*overrides: str) -> RunConfig:
    return parse(SMALL, list(overrides))


def version(run: str, number: int) -> Encoder:
    return load_encoder(open_registry("registry").folder(EncoderRef(run, number)))


def test_index_and_search_follow_the_dimension_that_is_kept() -> None:
    report = learn_stream(config("index.policy=versioned"))
    assert report["releases"] == ["white@v1", "white@v2"]
    assert report["metrics"]["recall@1"]["matrix"][1][0] is not None
    registry = open_registry("registry")
    retriever = Retriever.load(registry, registry.release("white@v2"))
    assert [segment.dim for segment in retriever.segments] == [6, 6]
    run = StreamRun.open(config("index.policy=versioned"))
    row = int(run.prepared.stream.tasks[0].query[0])
    stored = retriever.segments[0].vectors(np.array([retriever.segments[0].table.row(run.prepared.dataset.items[row].id)]))
    again = run.measures.embeddings(EncoderRef("white", 1)).of(np.array([row])).image
    np.testing.assert_allclose(stored, again, rtol=1e-5, atol=1e-6)
    for query in (Query(text="a striped circle"), Query(image=run.prepared.dataset.image_bytes(row))):
        assert len(retriever.search(query, k=5).hits) == 5


def test_each_version_has_the_head_of_its_own_task_and_reads_no_earlier_row(here: Path) -> None:
    learn_stream(config())
    run = StreamRun.open(config())
    heads = []
    for task in run.prepared.stream.tasks:
        items = run.prepared.dataset.items
        read = json.loads((here / "runs/white/reads" / f"{task.index:03d}.json").read_text())
        assert sorted(read) == sorted(items[int(row)].id for row in task.train), "the fit reads the whole train split, and nothing else"
        encoder = version("white", task.index + 1)
        head, encoder.whitening = encoder.whitening, None
        seen = embed_split(encoder, run.prepared.pixels, items, task.train)
        assert head is not None and seen.text is not None
        expected = fit_whitening(
            [torch.from_numpy(seen.image), torch.from_numpy(seen.text)], dim=6, eps=resolved(config()).encoder.options["whitening"]["eps"]
        )
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(head.state_dict()[name], value, rtol=1e-3, atol=1e-4)
        heads.append(head.projection)
    assert not torch.allclose(heads[0], heads[1], rtol=0.1)


@pytest.mark.parametrize("strategy", ["correlation", "l2"])
def test_training_and_distillation_do_not_notice_it(strategy: str) -> None:
    learn_stream(config(f"strategy={strategy}"))
    learn_stream(config(f"strategy={strategy}", "name=plain", "encoder.whitening=null"))
    for number in (1, 2):
        white, plain = version("white", number).state_dict(), version("plain", number).state_dict()
        assert white.keys() - plain.keys() == {"whitening.mean", "whitening.projection"}
        assert all(torch.equal(white[name], value) for name, value in plain.items())


def test_the_policy_that_mixes_versions_in_one_space_is_refused_before_anything_is_learned(here: Path) -> None:
    for whitening in ("{}", "{dim: 4}"):
        with pytest.raises(ConfigError, match=r"index\.policy=keep: encoder\.whitening is fitted anew .* encoder\.whitening=null"):
            learn_stream(config("index.policy=keep", f"encoder.whitening={whitening}"))
    assert not (here / "runs").exists()
    assert check(config("index.policy=keep", "encoder.whitening=null")) == check(config("index.policy=versioned")) == []


def test_the_strategy_that_moves_no_embedding_is_refused_before_anything_is_learned(here: Path) -> None:
    for whitening in ("{}", "{dim: 4}"):
        with pytest.raises(ConfigError, match=r"strategy=feature_extraction: encoder\.whitening is fitted anew .* encoder\.whitening=null"):
            learn_stream(config("strategy=feature_extraction", f"encoder.whitening={whitening}"))
    assert not (here / "runs").exists()
    assert check(config("strategy=feature_extraction", "encoder.whitening=null")) == []


def test_a_run_of_before_there_was_the_option_is_still_the_same_run() -> None:
    now = resolved(config("encoder.whitening=null"))
    assert now.encoder.options["whitening"] is None and now.encoder.options["pooling"] == "gem"
    plain = now.plain()
    del plain["encoder"]["whitening"]
    before = parse(plain)
    assert fingerprint(before) == fingerprint(now) and first_task_fingerprint(before) == first_task_fingerprint(now)
    white = resolved(config())
    assert fingerprint(white) != fingerprint(now) and first_task_fingerprint(white) != first_task_fingerprint(now)


def test_fitting_takes_rows_from_all_over_a_large_task(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setattr("perdure.pipeline._WHITENING_ROWS", 10)
    learn_stream(config("train.epochs=0"))
    run = StreamRun.open(config("train.epochs=0"))
    for task in run.prepared.stream.tasks:
        items = {item.id: row for row, item in enumerate(run.prepared.dataset.items)}
        read = [items[name] for name in json.loads((here / "runs/white/reads" / f"{task.index:03d}.json").read_text())]
        assert len(read) == 10 and set(read) <= set(task.train.tolist())
        assert {int(task.train[0]), int(task.train[-1])} <= set(read)
