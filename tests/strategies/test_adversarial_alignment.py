"""Adversarial alignment: each term against the plain formula, who learns from which, and when."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from perdure.encoders import Encoder, build_encoder
from perdure.errors import ConfigError
from perdure.records import Batch, Embedded
from perdure.strategies import STRATEGIES, Strategy, TaskContext
from perdure.strategies.adversarial_alignment import AdversarialAlignment
from perdure.strategies.adversary import Adversary, fully_connected

WORDS = ["red", "blue", "green", "grey"]
ONLY: dict[str, object] = {"imbalance": 0, "projection": 0, "adversary": "none"}


def started(**options: object) -> tuple[AdversarialAlignment, Encoder, Embedded]:
    """A strategy in its second task of two classes, a small encoder, and the embeddings of six pairs."""
    encoder = build_encoder("small_resnet", {"embedding_dim": 8, "width": 4, "image_size": 16}, with_text=True, seed=0)
    encoder.grow(num_classes=4, captions=WORDS)
    strategy = STRATEGIES.build("adversarial_alignment", options)
    assert isinstance(strategy, AdversarialAlignment)
    strategy.begin_task(encoder, TaskContext(1, torch.tensor([2, 3]), seed=7))
    generator = torch.Generator().manual_seed(3)
    image, text = (torch.randn(6, 8, generator=generator).requires_grad_() for _ in range(2))
    return strategy, encoder, Embedded(torch.tensor([2, 3, 2, 3, 2, 3]), image, text)


def plain_softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(each) for each in logits)
    return [math.exp(each) / total for each in logits]


def plain_logits(encoder: Encoder, z: Tensor, onto: Tensor, classes: list[int]) -> list[float]:
    """W^T z_hat with unit columns (4.1, 4.10), in loops."""
    z, onto = z.detach(), onto.detach()
    length = math.sqrt(sum(float(v) ** 2 for v in onto))
    along = sum(float(a) * float(b) / length for a, b in zip(z, onto, strict=True))
    hat = [along * float(b) / length for b in onto]
    out = []
    for c in classes:
        row = encoder.classifier.weight[c].tolist()
        size = math.sqrt(sum(v * v for v in row))
        out.append(sum(v / size * h for v, h in zip(row, hat, strict=True)))
    return out


def test_classification_and_imbalance_are_equations_4_10_and_4_11_over_the_tasks_classes_written_as_loops() -> None:
    strategy, encoder, batch = started(projection=0, adversary="none", temperature=3.0, ranking={"cross_entropy": 1.0, "mining": "all"})
    assert batch.text is not None
    terms = strategy.loss_terms(encoder, batch)
    surprise, apart = 0.0, 0.0
    for j in range(6):
        towards = plain_logits(encoder, batch.image[j], batch.text[j], [2, 3])
        back = plain_logits(encoder, batch.text[j], batch.image[j], [2, 3])
        own = int(batch.labels[j]) - 2
        surprise -= math.log(plain_softmax(towards)[own]) + math.log(plain_softmax(back)[own])
        p, q = (plain_softmax([each / 3.0 for each in logits]) for logits in (towards, back))
        apart += sum(a * math.log(a / b) + b * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert terms["cross_entropy"].item() == pytest.approx(surprise / 12, rel=1e-5)
    assert terms["imbalance"].item() == pytest.approx(9 * apart / 6, rel=1e-4)


def test_the_triplets_within_modalities_are_those_of_pictures_and_of_captions() -> None:
    strategy, encoder, batch = started(**ONLY)
    assert batch.text is not None
    both = strategy.loss_terms(encoder, batch)["triplet"]
    pictures = strategy.loss_terms(encoder, Embedded(batch.labels, batch.image, batch.image))["triplet"]
    captions = strategy.loss_terms(encoder, Embedded(batch.labels, batch.text, batch.text))["triplet"]
    torch.testing.assert_close(both, (pictures + captions) / 2)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (ONLY, set[str]()),
        ({"projection": 0, "adversary": "none"}, {"imbalance"}),
        ({"adversary": "none"}, {"imbalance", "projection"}),
        ({}, {"imbalance", "projection", "entropy"}),
        ({"adversary": "separate"}, {"imbalance", "projection", "entropy", "modality"}),
    ],
    ids=["baseline 1", "baseline 2", "baseline 3", "unified", "separate"],
)
def test_the_ablations_of_table_4_4_by_config(options: dict[str, object], names: set[str]) -> None:
    strategy, encoder, batch = started(**options)
    assert set(strategy.loss_terms(encoder, batch)) == {"cross_entropy", "triplet", "pairs"} | names


def test_the_unified_adversary_learns_in_one_step_of_five_and_never_together_with_what_it_judges() -> None:
    strategy, encoder, batch = started()
    assert batch.text is not None
    adversary = strategy.trained()["adversary"]
    seen = []
    for step in range(10):
        terms = strategy.loss_terms(encoder, replace(batch, step=step))
        seen.append("modality" in terms)
        for name in {"entropy", "modality"} & set(terms):
            batch.image.grad = batch.text.grad = None
            adversary.zero_grad()
            terms[name].backward(retain_graph=True)
            learns_adversary = any(each.grad is not None for each in adversary.parameters())
            learns_encoders = batch.image.grad is not None and batch.text.grad is not None
            assert (learns_encoders, learns_adversary) == ((True, False) if name == "entropy" else (False, True))
    assert seen == [False, False, False, False, True] * 2


@pytest.mark.parametrize("reversal", [0.05, 1.0])
def test_the_separate_classifier_is_taught_and_what_it_judges_is_pushed_the_other_way(reversal: float) -> None:
    strategy, encoder, batch = started(adversary="separate", reversal=reversal)
    assert batch.text is not None
    terms = strategy.loss_terms(encoder, batch)
    terms["modality"].backward()
    adversary = strategy.trained()["adversary"]
    assert isinstance(adversary, Adversary)
    assert all(each.grad is not None for each in adversary.classifier.parameters())
    assert batch.image.grad is not None
    pushed = batch.image.grad.clone()
    free = [each.detach().requires_grad_() for each in (batch.image, batch.text)]
    long = [math.sqrt(8) * each / each.norm(dim=1, keepdim=True) for each in free]
    plain = sum(-adversary.classifier(each).log_softmax(1)[:, m].mean() for m, each in enumerate(long))
    assert isinstance(plain, Tensor)
    plain.backward()
    assert free[0].grad is not None
    torch.testing.assert_close(pushed, -reversal * free[0].grad)
    assert terms["modality"].item() == pytest.approx(plain.item(), rel=1e-5)


def test_fooling_the_adversary_makes_it_unsure_and_teaching_it_makes_it_right() -> None:
    """Plain descent: on the embeddings along `entropy`, on the network along `modality`."""
    strategy, encoder, batch = started(**{**ONLY, "adversary": "unified", "every": 1, "entropy": 1})
    assert batch.text is not None
    adversary = strategy.trained()["adversary"]
    learning = torch.optim.Adam(adversary.parameters(), lr=1e-3)  # a surer one leaves no slope to climb
    before = strategy.loss_terms(encoder, batch)["modality"].item()
    for _ in range(20):
        learning.zero_grad()
        strategy.loss_terms(encoder, batch)["modality"].backward()
        learning.step()
    taught = strategy.loss_terms(encoder, batch)
    assert taught["modality"].item() < 0.5 * before
    fooling = torch.optim.Adam([batch.image, batch.text], lr=5e-2)
    for _ in range(100):
        fooling.zero_grad()
        strategy.loss_terms(encoder, batch)["entropy"].backward()
        fooling.step()
    fooled = strategy.loss_terms(encoder, batch)
    assert fooled["entropy"].item() < taught["entropy"].item() - 0.5
    assert fooled["entropy"].item() == pytest.approx(-2 * math.log(2), abs=0.15)  # as unsure as can be, of both modalities


def test_pictures_alone_are_ranked_and_classified_as_by_any_strategy() -> None:
    strategy, encoder, batch = started()
    fine: Strategy = STRATEGIES.build("fine_tune", {"ranking": {"cross_entropy": 3, "mining": "all"}})
    fine.begin_task(encoder, TaskContext(1, torch.tensor([2, 3])))
    alone = Embedded(batch.labels, batch.image)
    ours, theirs = strategy.loss_terms(encoder, alone), fine.loss_terms(encoder, alone)
    assert set(ours) == set(theirs) == {"triplet", "cross_entropy"}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_encoder_without_captions_has_no_adversary() -> None:
    encoder = build_encoder("small_resnet", {"embedding_dim": 8, "width": 4, "image_size": 16}, with_text=False, seed=0)
    strategy = STRATEGIES.build("adversarial_alignment", {})
    strategy.begin_task(encoder, TaskContext(0, torch.tensor([0])))
    assert not strategy.trained()
    assert strategy.observe(Batch(torch.arange(1), torch.zeros(1).long(), torch.zeros(1, 3, 16, 16))) == {}


def test_a_metric_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ranking.metric=proxy_nca has no part in it"):
        STRATEGIES.build("adversarial_alignment", {"ranking": {"metric": "proxy_nca"}})


def test_layers_are_drawn_from_their_seed_alone() -> None:
    torch.manual_seed(1)
    one = fully_connected(4, 3, 2, seed=5)
    torch.manual_seed(2)
    other = fully_connected(4, 3, 2, seed=5)
    another = fully_connected(4, 3, 2, seed=6)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not torch.equal(next(iter(one.parameters())), next(iter(another.parameters())))
    assert one(torch.zeros(7, 4)).shape == (7, 2)
