"""Classifying test items: by the classifier as it wants its embeddings, and by the means of classes as they were learned."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from perdure.data.pixels import Pixels
from perdure.encoders import Encoder, build_encoder
from perdure.encoders.whitening import fit_whitening
from perdure.records import Item, Task
from perdure.retrieval.classification import ClassMeans, class_means, classification_metrics, top1_over_time
from perdure.retrieval.evaluation import SplitEmbeddings, embed_split

COUNT = 120  # rows: even ones train, odd ones test; four classes, two a task
LABELS = np.arange(COUNT) // 2 % 4
ROWS = np.arange(COUNT)


def task(index: int) -> Task:
    own = np.isin(LABELS, (2 * index, 2 * index + 1))
    test = ROWS[own & (ROWS % 2 == 1)]
    return Task(index, f"task {index}", (), ROWS[own & (ROWS % 2 == 0)], test, test)


TASKS = (task(0), task(1))
TEST = ROWS[ROWS % 2 == 1]
ITEMS = [Item(f"item {row}", f"class {LABELS[row]}") for row in ROWS]


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    draw = np.random.default_rng(0)
    means = draw.integers(20, 220, size=(4, 1, 1, 3))
    return Pixels(np.clip(means[LABELS] + draw.normal(0, 20, size=(COUNT, 12, 12, 3)), 0, 255).astype(np.uint8))


def encoder(kind: str = "cosine", classes: int = 4) -> Encoder:
    options = {"image_size": 12, "width": 4, "embedding_dim": 8, "text": "none", "classifier": kind}
    made = build_encoder("small_resnet", options, with_text=False, seed=1)
    made.grow(num_classes=classes)
    with torch.no_grad():
        made.classifier.weight.copy_(torch.randn(made.classifier.weight.shape, generator=torch.Generator().manual_seed(2)))
    return made.eval()


def embedded(made: Encoder, pixels: Pixels) -> SplitEmbeddings:
    return embed_split(made, pixels, ITEMS, TEST)


def measured(made: Encoder, pixels: Pixels, learned: int, **options: object) -> dict[str, list[float | None]]:
    given = {"trained": True, "means": None, **options}
    return classification_metrics(made, pixels, embedded(made, pixels), TASKS, LABELS, learned=learned, **given)


def logits_written_out(made: Encoder, pixels: Pixels, rows: np.ndarray) -> np.ndarray:
    images = torch.from_numpy(pixels.take(rows)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        return made.classifier(made.image(images)).numpy()


@pytest.mark.parametrize("kind", ["cosine", "linear"])
@pytest.mark.parametrize("whitened", [False, True])
def test_top1_is_the_classifiers_answer_to_embeddings_as_they_are_trained(kind: str, whitened: bool, pixels: Pixels) -> None:
    made = encoder(kind)
    if whitened:
        made.whitening = fit_whitening([torch.from_numpy(embedded(made, pixels).image)], dim=5, eps=0.1)
    found = measured(made, pixels, 2)
    for index in (0, 1):
        rows = TASKS[index].query
        logits = logits_written_out(made, pixels, rows)
        assert found["top1"][index] == np.mean(logits.argmax(axis=1) == LABELS[rows])
        own = logits[:, 2 * index : 2 * index + 2]
        assert found["top1_known_task"][index] == np.mean(own.argmax(axis=1) + 2 * index == LABELS[rows])


def test_classes_of_later_tasks_neither_compete_nor_are_measured(pixels: Pixels) -> None:
    made = encoder()
    found = measured(made, pixels, 1)
    assert found["top1"][0] == found["top1_known_task"][0]
    assert found["top1"][1] is found["top1_known_task"][1] is None


def test_a_classifier_that_nothing_trains_is_not_told_of_but_the_means_are(pixels: Pixels) -> None:
    made = encoder()
    means = class_means(made, pixels, TASKS[0].train, LABELS[TASKS[0].train])
    found = measured(made, pixels, 1, trained=False, means=means)
    assert found["top1"] == found["top1_known_task"] == [None, None]
    assert found["top1_ncm"][0] is not None and found["top1_ncm"][1] is None


def test_of_no_items_there_are_no_means_and_they_are_kept_like_others(pixels: Pixels, tmp_path: Path) -> None:
    made, nothing = encoder(), np.zeros(0, dtype=np.int64)
    class_means(made, pixels, nothing, nothing).save(tmp_path / "none.safetensors")
    none = ClassMeans.load(tmp_path / "none.safetensors")
    assert none.classes.shape == (0,) and none.means.shape == (0, made.joint_dim)
    new = class_means(made, pixels, TASKS[1].train, LABELS[TASKS[1].train])
    for both in (none.replaced_by(new), new.replaced_by(none)):
        assert np.array_equal(both.classes, new.classes) and np.array_equal(both.means, new.means)
    assert measured(made, pixels, 1, means=none)["top1_ncm"] == [None, None]


def test_the_nearest_mean_is_the_mean_of_unit_embeddings_written_out(pixels: Pixels) -> None:
    made = encoder()
    rows = np.concatenate([TASKS[0].train, TASKS[1].train])
    means = class_means(made, pixels, rows, LABELS[rows])
    vectors = embed_split(made, pixels, ITEMS, rows).image
    expected = np.stack([vectors[LABELS[rows] == label].mean(axis=0) for label in range(4)])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(means.means, expected, atol=1e-6)
    found = measured(made, pixels, 2, means=means)["top1_ncm"]
    for index in (0, 1):
        at = np.searchsorted(TEST, TASKS[index].query)
        scores = embedded(made, pixels).image[at] @ expected.T
        assert found[index] == np.mean(scores.argmax(axis=1) == LABELS[TASKS[index].query])
    assert min(value for value in found if value is not None) > 0.5, "colours alone tell these classes apart"


def test_a_mean_is_taken_over_no_more_than_fifty_items_of_a_class_evenly_spaced() -> None:
    big = Pixels(np.random.default_rng(0).integers(0, 255, (130, 12, 12, 3)).astype(np.uint8))
    made = encoder()
    class_means(made, big, np.arange(130), np.zeros(130, dtype=np.int64))
    read = np.flatnonzero(big.read)
    assert len(read) == 50 and read[0] == 0 and read[-1] == 129


def test_means_are_kept_by_the_encoder_that_learned_the_class_and_survive_a_file(tmp_path: Path, pixels: Pixels) -> None:
    old = class_means(encoder(), pixels, TASKS[0].train, LABELS[TASKS[0].train])
    changed = encoder()
    with torch.no_grad():
        for parameter in changed.image.parameters():
            parameter.add_(0.1)
    new = class_means(changed, pixels, TASKS[1].train, LABELS[TASKS[1].train])
    both = old.replaced_by(new)
    both.save(tmp_path / "means.safetensors")
    loaded = ClassMeans.load(tmp_path / "means.safetensors")
    assert loaded.classes.tolist() == [0, 1, 2, 3]
    assert np.array_equal(loaded.means, np.concatenate([old.means, new.means]))
    again = both.replaced_by(ClassMeans(np.array([1]), np.eye(8, dtype=np.float32)[:1]))
    assert again.classes.tolist() == [0, 1, 2, 3]
    assert np.array_equal(again.means[1], np.eye(8)[0]) and np.array_equal(again.means[0], old.means[0])


def test_where_a_class_has_no_mean_nothing_is_said_of_nearest_means(pixels: Pixels) -> None:
    made = encoder()
    only_new = class_means(made, pixels, TASKS[1].train, LABELS[TASKS[1].train])
    assert measured(made, pixels, 2, means=only_new)["top1_ncm"] == [None, None]


def test_a_perfect_encoder_is_right_everywhere(pixels: Pixels) -> None:
    made = encoder()
    perfect = SplitEmbeddings(TEST, np.eye(8, dtype=np.float32)[LABELS[TEST]], None, np.zeros(0, dtype=np.int64))
    with torch.no_grad():
        made.classifier.weight.copy_(torch.eye(8)[:4])
    means = ClassMeans(np.arange(4), np.eye(8, dtype=np.float32)[:4])
    found = classification_metrics(made, pixels, perfect, TASKS, LABELS, learned=2, trained=True, means=means)
    assert found == {"top1": [1.0, 1.0], "top1_known_task": [1.0, 1.0], "top1_ncm": [1.0, 1.0]}


def test_an_encoder_that_maps_everything_to_one_point_is_right_nowhere(pixels: Pixels) -> None:
    made = encoder()
    with torch.no_grad():
        made.classifier.weight.copy_(torch.ones(4, 8))
    point = SplitEmbeddings(TEST, np.full((len(TEST), 8), 8**-0.5, dtype=np.float32), None, np.zeros(0, dtype=np.int64))
    means = ClassMeans(np.arange(4), np.full((4, 8), 8**-0.5, dtype=np.float32))
    found = classification_metrics(made, pixels, point, TASKS, LABELS, learned=2, trained=True, means=means)
    assert found["top1"] == found["top1_ncm"] == [0.0, 0.0]


def test_over_time_every_test_item_counts_the_same() -> None:
    small = Task(1, "small", (), TASKS[1].train, TASKS[1].query[:10], TASKS[1].query[:10])
    big = len(TASKS[0].query)
    matrices = {"top1": [[0.8, None], [0.2, 0.6]], "top1_known_task": [[0.9, None], [0.7, 1.0]], "top1_ncm": [[None, None], [0.5, 1.0]]}
    found = top1_over_time(matrices, (TASKS[0], small), LABELS)
    assert [row["classes"] for row in found] == [2, 4]
    assert found[0] == {"task": 0, "classes": 2, "top1": 0.8, "top1_known_task": 0.9, "top1_ncm": None}
    assert found[1]["top1"] == pytest.approx((0.2 * big + 0.6 * 10) / (big + 10))
    assert found[1]["top1_ncm"] == pytest.approx((0.5 * big + 1.0 * 10) / (big + 10))


def test_embedding_for_a_classifier_leaves_the_mode_of_the_encoder_as_it_was(pixels: Pixels) -> None:
    made = encoder("linear").train()
    before = functional.normalize(made.image.eval()(torch.zeros(1, 3, 12, 12)), dim=1)
    made.train()
    class_means(made, pixels, TASKS[0].train, LABELS[TASKS[0].train])
    assert made.training
    assert torch.equal(functional.normalize(made.image.eval()(torch.zeros(1, 3, 12, 12)), dim=1), before), "no statistics moved"
