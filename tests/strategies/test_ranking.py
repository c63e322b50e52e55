import pytest
import torch
from pydantic import ValidationError

from perdure.encoders import GrowingClassifier
from perdure.losses import batch_triplet, bidirectional_triplet, cross_entropy_over, unit_rows
from perdure.records import Embedded
from perdure.strategies import STRATEGIES, Ranking


class OnlyAClassifier:
    """All that the ranking terms ask of an encoder."""

    def __init__(self, num_classes: int) -> None:
        self.classifier = GrowingClassifier(4)
        self.classifier.grow(num_classes)


def batch(*, text: bool) -> Embedded:
    generator = torch.Generator().manual_seed(0)
    image, captions = (3 * torch.randn(8, 4, generator=generator) for _ in range(2))
    return Embedded(labels=torch.arange(8) % 4 + 2, image=image, text=captions if text else None)


def test_the_terms_are_the_weighted_losses_on_unit_rows() -> None:
    encoder, embedded, classes = OnlyAClassifier(6), batch(text=True), torch.tensor([2, 3, 4, 5])
    ranking = Ranking(triplet=2, cross_entropy=3, pairs=4, margin=0.3, pair_margin=0.1, mining="hard", pair_mining="hard")
    terms = ranking.terms(encoder, embedded, classes)  # type: ignore[arg-type]
    assert embedded.text is not None
    image, text = unit_rows(embedded.image), unit_rows(embedded.text)
    assert list(terms) == ["triplet", "cross_entropy", "pairs"]
    torch.testing.assert_close(terms["triplet"], 2 * batch_triplet(image, embedded.labels, margin=0.3, mining="hard"))
    logits = encoder.classifier(embedded.image)
    torch.testing.assert_close(terms["cross_entropy"], 3 * cross_entropy_over(logits, embedded.labels, classes))
    torch.testing.assert_close(terms["pairs"], 4 * bidirectional_triplet(image, text, margin=0.1, mining="hard"))


def test_a_term_of_weight_zero_is_left_out() -> None:
    terms = Ranking(cross_entropy=0, pairs=0).terms(OnlyAClassifier(6), batch(text=True), None)  # type: ignore[arg-type]
    assert list(terms) == ["triplet"]


def test_without_text_there_are_no_pairs() -> None:
    terms = Ranking().terms(OnlyAClassifier(6), batch(text=False), None)  # type: ignore[arg-type]
    assert list(terms) == ["triplet", "cross_entropy"]


def test_captions_of_the_same_class_can_be_spared() -> None:
    encoder, embedded = OnlyAClassifier(6), batch(text=True)
    every, sparing = (
        Ranking(pair_negatives=which).terms(encoder, embedded, None)["pairs"]  # type: ignore[arg-type]
        for which in ("all", "other_classes")
    )
    assert embedded.text is not None
    expected = bidirectional_triplet(unit_rows(embedded.image), unit_rows(embedded.text), same=embedded.labels)
    torch.testing.assert_close(sparing, expected)
    assert float(every) != float(sparing)


def test_an_objective_that_would_learn_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="nothing would be learned"):
        Ranking(triplet=0, cross_entropy=0, pairs=0)
    with pytest.raises(ValueError, match="the batch has no text"):
        Ranking(triplet=0, cross_entropy=0).terms(OnlyAClassifier(6), batch(text=False), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"margin": -0.1}, {"triplet": float("nan")}, {"pairs": float("inf")}, {"mining": "soft"}, {"pear": 1}])
def test_weights_out_of_range_and_unknown_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Ranking.model_validate(wrong)


@pytest.mark.parametrize(("cross_entropy", "mining"), [(1.0, "hard"), (0.0, "all")])
def test_triplets_are_hard_beside_a_classifier_and_all_without_one(cross_entropy: float, mining: str) -> None:
    auto, chosen = (
        Ranking(cross_entropy=cross_entropy, mining=which).terms(OnlyAClassifier(6), batch(text=False), None)["triplet"]  # type: ignore[arg-type]
        for which in ("auto", mining)
    )
    assert torch.equal(auto, chosen)


def test_a_run_configuration_reaches_the_ranking_of_every_strategy() -> None:
    for name in STRATEGIES:
        assert STRATEGIES.resolve(name, {"ranking": {"margin": 0.25}})["ranking"] == Ranking(margin=0.25)
