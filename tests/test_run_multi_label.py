"""A run on pictures with several labels: tags read by a bag of words, codes of bits, a search by tags in any order."""

from pathlib import Path

import pytest
from PIL import Image

from perdure.config import load
from perdure.data.mirflickr25k import LABELS
from perdure.registry import open_registry
from perdure.retrieval.retriever import Query, Retriever
from perdure.run import learn_stream

READY = Path(__file__).resolve().parents[1] / "jobs" / "configs" / "mirflickr25k.yaml"
SMALL = [
    "stream.dataset={name: mirflickr25k, root: data, min_tag_count: 2, queries: 12, train: 30}",
    "stream.kind={name: class_incremental, first: 1, step: 1, order: sorted}",
    "encoder={name: small_resnet, image_size: 16, width: 4, embedding_dim: 16, hash_bits: 16, text: {name: bag_of_words, hidden: 20}}",
    "train={epochs: 1, batch_size: 8, per_class: 1, precision: fp32}",
    "workers=0",
]
COLOURS = {"sky": (40, 90, 220), "sunset": (220, 90, 40)}


def mirflickr25k(root: Path) -> None:
    """48 pictures of the sky, every third with a sunset."""
    labels: dict[str, list[int]] = {label: [] for label in LABELS}
    for number in range(1, 49):
        own = ["sky", "sunset"] if number % 3 == 0 else ["sky"]
        for label in own:
            labels[label].append(number)
        picture, tags = root / "mirflickr" / f"im{number}.jpg", root / "mirflickr" / "meta" / "tags" / f"tags{number}.txt"
        tags.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), COLOURS[own[-1]]).save(picture)
        tags.write_text("".join(f"{tag}\n" for tag in [*own, "köln" if number % 2 else "nikon", f"once{number}"]), encoding="utf-8")
    for label, numbers in labels.items():
        path = root / "mirflickr25k_annotations_v080" / f"{label}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{number}\n" for number in numbers))


def test_pictures_are_found_by_tags_in_any_order_and_filtered_by_any_of_their_labels(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.run.stream_run.save_pictures", lambda *_: None)  # of the report, which nothing here reads
    mirflickr25k(here / "data")
    report = learn_stream(load(READY, SMALL))
    assert report["releases"] == ["mirflickr25k@v1", "mirflickr25k@v2"]
    registry = open_registry("registry")
    retriever = Retriever.load(registry, registry.release("mirflickr25k@v2"))
    one, other = (retriever.search(Query(text=text), k=5).hits for text in ("sky sunset köln", "Köln SUNSET sky"))
    assert [hit.id for hit in one] == [hit.id for hit in other] and len(one) == 5
    sunsets = retriever.search(Query(text="sky"), k=50, filter={"tags": "sunset"}).hits
    skies = retriever.search(Query(text="sky"), k=50, filter={"tags": "sky"}).hits
    assert 0 < len(sunsets) < len(skies) == 36  # all that are no query
    assert all(int(hit.id.removeprefix("mirflickr/im").removesuffix(".jpg")) % 3 == 0 and hit.label == "sunset" for hit in sunsets)
