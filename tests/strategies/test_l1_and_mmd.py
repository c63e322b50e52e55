"""What the two distillers of distances and distributions add up; the rest of their promises is in test_strategies.py."""

import pytest
import torch

from perdure.encoders import Encoder, build_encoder
from perdure.errors import ConfigError
from perdure.losses import l1_distance, mmd, softened_cross_entropy, unit_rows
from perdure.records import Embedded
from perdure.strategies import STRATEGIES, Strategy, TaskContext


@pytest.fixture
def encoder() -> Encoder:
    made = build_encoder("small_resnet", {"embedding_dim": 8, "width": 4, "image_size": 16}, with_text=True, seed=0)
    made.grow(num_classes=3, captions=["red"])
    return made


def begun(name: str, encoder: Encoder, **options: object) -> Strategy:
    """At the second task, grown."""
    strategy = STRATEGIES.build(name, {"max_share": None, **options})
    strategy.begin_task(encoder, TaskContext(1, torch.arange(3, 6)))
    encoder.grow(num_classes=6)
    return strategy


def batch(*, text: bool) -> Embedded:
    generator = torch.Generator().manual_seed(0)
    image, words, taught_image, taught_words = (4 * torch.randn(9, 8, generator=generator) for _ in range(4))
    both = {"text": words, "teacher_text": taught_words} if text else {}
    return Embedded(torch.arange(9) % 3 + 3, image, teacher_image=taught_image, **both)


def towers(embedded: Embedded) -> list[tuple[torch.Tensor, torch.Tensor]]:
    pairs = [(embedded.teacher_image, embedded.image), (embedded.teacher_text, embedded.text)]
    return [(taught, student) for taught, student in pairs if taught is not None and student is not None]


@pytest.mark.parametrize("text", [False, True], ids=["images", "images and text"])
def test_l1_is_the_weighted_distance_of_unit_rows_a_mean_over_the_towers(encoder: Encoder, text: bool) -> None:
    embedded = batch(text=text)
    losses = [l1_distance(unit_rows(taught), unit_rows(student)) for taught, student in towers(embedded)]
    term = begun("l1", encoder, weight=0.7).loss_terms(encoder, embedded)["l1"]
    torch.testing.assert_close(term, 0.7 * sum(losses) / len(losses))


@pytest.mark.parametrize("text", [False, True], ids=["images", "images and text"])
def test_mmd_is_equation_5_6(encoder: Encoder, text: bool) -> None:
    embedded = batch(text=text)
    strategy = begun("mmd", encoder, alpha=0.3, beta=5.0, temperature=1.5, bandwidths=(0.5, 3.0))
    terms = strategy.loss_terms(encoder, embedded)
    apart = [mmd(unit_rows(taught), unit_rows(student), bandwidths=(0.5, 3.0)) for taught, student in towers(embedded)]
    torch.testing.assert_close(terms["mmd"], 5 * sum(apart) / len(apart))
    old = [encoder.classifier(each)[:, :3] for pair in towers(embedded) for each in pair]  # grown, not yet trained: the teacher's rows
    dist = [softened_cross_entropy(old[i], old[i + 1], temperature=1.5) for i in range(0, len(old), 2)]
    torch.testing.assert_close(terms["lwf"], 0.3 * sum(dist) / len(dist))
    assert list(terms)[-2:] == ["lwf", "mmd"]


def test_answers_are_held_as_by_lwf_and_the_distribution_as_in_the_thesis() -> None:
    options, lwf = STRATEGIES.resolve("mmd", {}), STRATEGIES.resolve("lwf", {})
    assert (options["alpha"], options["temperature"], options["beta"]) == (lwf["weight"], lwf["temperature"], 1)


@pytest.mark.parametrize(
    ("weights", "left"),
    [({"alpha": 0}, {"mmd"}), ({"beta": 0}, {"lwf"}), ({"alpha": 0, "beta": 0}, set())],
    ids=["mmd alone", "lwf", "none"],
)
def test_a_weight_of_zero_leaves_the_term_out(encoder: Encoder, weights: dict[str, int], left: set[str]) -> None:
    for max_share in (None, 0.25):
        terms = begun("mmd", encoder, **weights, max_share=max_share).loss_terms(encoder, batch(text=True))
        assert set(terms) == {"triplet", "cross_entropy", "pairs"} | left


def test_bandwidths_come_from_a_list_and_are_kept_as_one() -> None:
    assert STRATEGIES.resolve("mmd", {"bandwidths": [1, 2]})["bandwidths"] == (1.0, 2.0)
    assert STRATEGIES.plain("mmd", {})["bandwidths"] == [0.25, 0.5, 1.0, 2.0, 4.0]
    for wrong in ([0], [-1.0], []):
        with pytest.raises(ConfigError, match="bandwidths"):
            STRATEGIES.build("mmd", {"bandwidths": wrong})


def test_answers_of_a_classifier_that_nothing_trains_are_not_held() -> None:
    blind = {"cross_entropy": 0.0}
    with pytest.raises(ConfigError, match=r"ranking.cross_entropy=0 trains none.*choose another strategy"):
        STRATEGIES.build("lwf", {"ranking": blind})
    with pytest.raises(ConfigError, match=r"ranking.cross_entropy=0 trains none.*choose alpha=0"):
        STRATEGIES.build("mmd", {"ranking": blind})
    STRATEGIES.build("mmd", {"alpha": 0.0, "ranking": blind})
