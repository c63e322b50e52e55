"""Data that is small, or not all there: six pictures a class are learned and searched; words that are missing are named in time."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import train
from perdure import pipeline
from perdure.config import parse
from perdure.errors import DataError
from perdure.records import EncoderRef
from perdure.registry import open_registry
from perdure.retrieval.retriever import Query, Retriever


def draw(folder: Path, classes: int, each: int) -> None:
    rng = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class {label}").mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 80, (24, 24, 3), dtype=np.uint8)
            pixels[..., label % 3] += np.uint8(40 * (label + 1))
            Image.fromarray(pixels).save(folder / f"class {label}" / f"{number}.png")


@pytest.mark.parametrize("policy", ["reindex", "versioned"])
def test_six_pictures_a_class_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERDURE_RUNS", str(tmp_path / "runs"))
    draw(tmp_path / "pics", classes=4, each=6)
    (tmp_path / "few.yaml").write_text(
        "name: few\n"
        "stream: {dataset: {name: image_folder, root: pics}, kind: {name: class_incremental, first: 2, step: 2}}\n"
        "encoder: {name: small_resnet, image_size: 24, embedding_dim: 16, width: 4}\n"
        "train: {epochs: 2, batch_size: 8, per_class: 2}\n"
        f"index: {{kind: flat, policy: {policy}}}\n"
        "workers: 0\n"
        "registry: registry\n"
    )
    train.main(["few.yaml"])
    report = json.loads((tmp_path / "runs" / "few" / "report.json").read_text())
    matrix = report["metrics"]["recall@1"]["matrix"]
    assert all(value is not None for row in matrix for value in row)
    assert [(task["train"], task["query"], task["gallery"]) for task in report["tasks"]] == [(10, 2, 12)] * 2
    retriever = Retriever.load(open_registry(tmp_path / "registry"), "few@v2")
    assert retriever.release.encoder == EncoderRef("few", 2)
    hits = retriever.search(Query(image=(tmp_path / "pics" / "class 0" / "0.png").read_bytes()), 24).hits
    assert len(hits) == 24


def test_pictures_without_words_among_others_are_named_before_anything_is_learned(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(buffer, "PNG")
    rows = [{"image": buffer.getvalue(), "label": f"c{n % 2}", "words": None if n in (3, 8) else f"word {n}"} for n in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "some.parquet")
    dataset = {"name": "parquet", "train": str(tmp_path / "some.parquet"), "image": "image", "label": "label", "text": "words"}
    kind = {"name": "class_incremental", "first": 2, "step": 1, "tasks": 1}
    raw = {"name": "some", "stream": {"dataset": dataset, "kind": kind}, "encoder": {"name": "small_resnet", "image_size": 8}}
    with pytest.raises(DataError, match=r"of 16 training items have no caption, such as '.*some.parquet:[38]'.*encoder.text=none"):
        pipeline.prepare(parse(raw))
    assert not pipeline.prepare(parse(raw, ["encoder.text=none"])).with_text
