import pytest
import torch

from perdure.encoders import GrowingClassifier


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_old_rows_and_old_logits_stay_bit_for_bit(kind) -> None:
    classifier = GrowingClassifier(8, kind=kind, seed=3)
    classifier.grow(3)
    embeddings = torch.randn(5, 8)
    weight, logits = classifier.weight.detach().clone(), classifier(embeddings)
    classifier.grow(7)
    assert classifier.num_classes == 7 and classifier(embeddings).shape == (5, 7)
    assert torch.equal(classifier.weight[:3], weight)
    torch.testing.assert_close(classifier(embeddings)[:, :3], logits, rtol=0, atol=1e-6)


def test_cosine_logits_equal_the_formula_written_as_loops() -> None:
    classifier = GrowingClassifier(4, kind="cosine", scale=10.0)
    classifier.grow(3)
    embeddings = torch.randn(6, 4)
    logits = classifier(embeddings)
    for b in range(6):
        for c in range(3):
            z, w = embeddings[b], classifier.weight[c]
            assert logits[b, c].item() == pytest.approx((10 * (z @ w) / (z.norm() * w.norm())).item(), abs=1e-5)


def test_two_workers_grow_the_same_rows_whatever_they_drew_before() -> None:
    one, other = GrowingClassifier(4, seed=5), GrowingClassifier(4, seed=5)
    torch.randn(100)
    one.grow(3)
    one.grow(6)
    torch.manual_seed(99)
    other.grow(3)
    other.grow(6)
    assert torch.equal(one.weight, other.weight)
    assert not torch.equal(one.weight[:3], one.weight[3:])


def test_growing_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    GrowingClassifier(4).grow(5)
    assert torch.equal(torch.randn(3), expected)


def test_refuses_to_shrink() -> None:
    classifier = GrowingClassifier(4)
    classifier.grow(3)
    with pytest.raises(ValueError, match="3 rows to 2"):
        classifier.grow(2)


def test_no_classes_give_no_logits_and_frozen_stays_frozen() -> None:
    classifier = GrowingClassifier(4)
    assert classifier(torch.randn(2, 4)).shape == (2, 0)
    classifier.requires_grad_(False)
    classifier.grow(2)
    assert not classifier.weight.requires_grad
