"""Domain-uncertainty hashing: each term against the plain formula, which side learns when, and what it refuses."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from perdure.checks import check
from perdure.config import parse
from perdure.encoders import Encoder, build_encoder, load_encoder, save_encoder
from perdure.errors import ConfigError
from perdure.records import Batch, Embedded
from perdure.strategies import STRATEGIES, TaskContext
from perdure.strategies.domain_uncertainty_hashing import DomainUncertaintyHashing

PLAIN: dict[str, object] = {"domain": 1, "pairs": 1, "label": 1, "levels": 1, "quantisation": 1}
TAGS = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1]]).float()


def new_encoder(*, text: bool = True, bits: int | None = 8) -> Encoder:
    options = {"embedding_dim": 6, "width": 4, "image_size": 16, "hash_bits": bits}
    encoder = build_encoder("small_resnet", options, with_text=text, seed=0)
    encoder.grow(num_classes=2, captions=["red"])
    return encoder


def started(step: int = 0, **options: object) -> tuple[DomainUncertaintyHashing, Encoder, Embedded]:
    encoder = new_encoder()
    strategy = STRATEGIES.build("domain_uncertainty_hashing", options)
    assert isinstance(strategy, DomainUncertaintyHashing)
    strategy.begin_task(encoder, TaskContext(0, torch.tensor([0, 1]), seed=7, num_tags=3))
    generator = torch.Generator().manual_seed(3)
    image, text = (torch.randn(4, 6, generator=generator).requires_grad_() for _ in range(2))
    return strategy, encoder, Embedded(torch.tensor([0, 0, 1, 1]), image, text, tags=TAGS, step=step)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def dot(a: Tensor, b: Tensor) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def test_every_term_is_its_equation_written_as_loops() -> None:
    strategy, encoder, batch = started(**PLAIN)
    assert encoder.hashing is not None and batch.text is not None
    with torch.no_grad():
        terms = strategy.loss_terms(encoder, batch)
        predictors = strategy.trained()["predictors"]
        assert isinstance(predictors, torch.nn.ModuleDict)
        real = [torch.stack([row * math.sqrt(8 / dot(row, row)) for row in side]) for side in (batch.image, batch.text)]
        sides = {"real": real, "code": (encoder.hashing(batch.image, "image"), encoder.hashing(batch.text, "text"))}
        pairs = levels = domain = 0.0
        for kind, (mine, theirs) in sides.items():
            for i in range(4):
                for j in range(4):
                    common = sum(float(a) * float(b) for a, b in zip(TAGS[i], TAGS[j], strict=True))
                    theta = dot(mine[i], theirs[j]) / 2
                    pairs += (math.log(1 + math.exp(theta)) - (theta if common else 0)) / 16
                    levels += (sigmoid(dot(mine[i], theirs[j])) - common / 3) ** 2 / 16
            for side in (mine, theirs):
                for p in predictors["features" if kind == "real" else "codes"](side).softmax(dim=1).tolist():
                    domain += sum(each * math.log(each) for each in p) / 4
        labels = 0.0
        for side in sides["real"]:
            for i, row in enumerate(predictors["labels"](side).tolist()):
                labels += sum(-math.log(sigmoid(x)) if TAGS[i, c] else -math.log(1 - sigmoid(x)) for c, x in enumerate(row)) / 4
        away = sum((x - (1 if x >= 0 else -1)) ** 2 for side in sides["code"] for x in side.flatten().tolist()) / 32
    expected = {"domain": domain, "pairs": pairs, "labels": labels, "levels": levels, "quantisation": away}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-4)


def test_the_weights_of_equation_3_7() -> None:
    strategy, encoder, batch = started(**PLAIN)
    plain = strategy.loss_terms(encoder, batch)
    strategy, encoder, batch = started()  # the defaults
    weighted = strategy.loss_terms(encoder, batch)
    ratios = {name: (weighted[name] / plain[name]).item() for name in plain}
    assert ratios == pytest.approx({"domain": 1, "pairs": 1, "labels": 1, "levels": 0.1, "quantisation": 0.1})
    strategy, encoder, batch = started(levels=0, domain=0)
    assert set(strategy.loss_terms(encoder, batch)) == {"pairs", "labels", "quantisation"}


def gradients(step: int, **options: object) -> dict[str, Tensor | None]:
    """Of the embeddings and the heads of both sides, and of the predictors, after one step."""
    strategy, encoder, batch = started(step, **options)
    assert encoder.hashing is not None and batch.text is not None
    torch.stack(list(strategy.loss_terms(encoder, batch).values())).sum().backward()
    assert all(each.grad is not None for each in strategy.trained()["predictors"].parameters()), "the predictors learn in every step"
    heads = {"image head": encoder.hashing.image.weight.grad, "text head": encoder.hashing.text.weight.grad}
    return {"image": batch.image.grad, "text": batch.text.grad, **heads}


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_alternating_sides_learn_in_turns_each_by_the_gradient_that_it_has_when_both_learn(step: int) -> None:
    mine = ("image", "image head") if step % 2 == 0 else ("text", "text head")
    in_turns, together = gradients(step, alternating=True), gradients(step)
    for name, gradient in in_turns.items():
        assert (gradient is not None) == (name in mine)
        if gradient is not None:
            torch.testing.assert_close(gradient, together[name])
    assert all(gradient is not None for gradient in together.values())


@pytest.mark.parametrize("longer", [0.1, 30.0])
def test_the_length_of_features_is_no_part_of_the_terms_on_features(longer: float) -> None:
    strategy, encoder, batch = started(labels="tags", **PLAIN)
    heads = encoder.hashing
    assert heads is not None and batch.text is not None
    with torch.no_grad():
        before = strategy.loss_terms(encoder, batch)["labels"]
        after = strategy.loss_terms(encoder, Embedded(batch.labels, longer * batch.image, batch.text, tags=TAGS))["labels"]
    torch.testing.assert_close(before, after)


def test_labels_by_class_are_those_of_classes_and_need_no_tags() -> None:
    strategy, encoder, batch = started(labels="class", **PLAIN)
    by_class = strategy.loss_terms(encoder, Embedded(batch.labels, batch.image, batch.text))
    strategy, encoder, _ = started(**PLAIN)
    one_hot = torch.nn.functional.one_hot(batch.labels, 2).float()
    strategy.begin_task(encoder, TaskContext(0, torch.tensor([0, 1]), seed=7, num_tags=2))
    by_tags = strategy.loss_terms(encoder, Embedded(batch.labels, batch.image, batch.text, tags=one_hot))
    assert all(torch.equal(by_class[name], by_tags[name]) for name in by_tags)


def test_what_it_learns_tells_the_classes_apart_in_bits() -> None:
    """A few pairs of two classes, learned by heart."""
    strategy, encoder, _ = started(labels="class")
    assert encoder.hashing is not None
    labels = torch.arange(8) % 2
    colours = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.1, 0.9]])[labels]
    images = colours[:, :, None, None].expand(8, 3, 16, 16) + 0.05 * torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert encoder.vocabulary is not None
    encoder.grow(num_classes=2, captions=["red blue"])
    tokens = encoder.vocabulary.encode([["red", "blue"][label] for label in labels.tolist()])
    optimizer = torch.optim.Adam([*encoder.parameters(), *strategy.trained()["predictors"].parameters()], lr=1e-2)
    for step in range(60):
        image, text = encoder(images, tokens)
        optimizer.zero_grad()
        torch.stack(list(strategy.loss_terms(encoder, Embedded(labels, image, text, step=step)).values())).sum().backward()
        optimizer.step()
    bits = [
        rows >= 0 for rows in (encoder.embed_images(images), encoder.embed_texts([["red", "blue"][label] for label in labels.tolist()]))
    ]
    apart = (bits[0][:, None] != bits[1][None]).sum(dim=2)
    same = labels[:, None] == labels
    assert int(apart[same].max()) < int(apart[~same].min())


class FourPairs:
    """`Examples` of four pictures and their captions."""

    def batches(self, *, size: int, per_class: int, count: int) -> Iterator[Batch]:
        for step in range(count):
            rows = torch.arange(4)
            pictures = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(step))
            yield Batch(rows, rows % 2, pictures, torch.ones(4, 1, dtype=torch.int64))


def test_bits_in_which_captions_are_the_opposite_of_their_pictures_are_turned_once() -> None:
    strategy, encoder, _ = started()
    heads, images = encoder.hashing, torch.rand(4, 3, 16, 16)
    assert heads is not None
    opposite = torch.tensor([True, False, True, True, False, False, False, False])
    with torch.no_grad():
        heads.image.bias.copy_(torch.tensor([5.0, 5, -5, 5, 5, -5, 5, -5]))
        heads.text.bias.copy_(torch.where(opposite, -heads.image.bias, heads.image.bias))

    def differing() -> Tensor:
        return (encoder.embed_images(images) >= 0) != (encoder.embed_texts(["red"] * 4) >= 0)

    weights = {name: parameter.clone() for name, parameter in encoder.named_parameters()}
    assert torch.equal(differing(), opposite.expand(4, 8))
    strategy.consolidate(encoder, FourPairs())
    assert not differing().any()
    strategy.consolidate(encoder, FourPairs())
    assert not differing().any()
    turned = {name for name, parameter in encoder.named_parameters() if not torch.equal(parameter, weights[name])}
    assert turned == {"hashing.text.weight", "hashing.text.bias"}
    assert torch.equal(heads.text.weight[~opposite], weights["hashing.text.weight"][~opposite])


def test_stored_codes_are_as_long_as_asked_and_survive_storage(tmp_path: Path) -> None:
    encoder, images = new_encoder(bits=16), torch.rand(3, 3, 16, 16)
    rows = encoder.embed_images(images)
    assert rows.shape == (3, 16) == (3, encoder.embedding_dim) and encoder.joint_dim == 6
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    save_encoder(encoder, tmp_path)
    assert torch.equal(load_encoder(tmp_path).embed_images(images), rows)


def test_what_it_cannot_learn_from_is_refused() -> None:
    strategy = STRATEGIES.build("domain_uncertainty_hashing", {})
    with pytest.raises(ConfigError, match=r"encoder\.hash_bits is null"):
        strategy.begin_task(new_encoder(bits=None), TaskContext(0, torch.tensor([0])))
    with pytest.raises(ConfigError, match="the stream has no captions"):
        strategy.begin_task(new_encoder(text=False), TaskContext(0, torch.tensor([0])))
    strategy, encoder, batch = started()
    with pytest.raises(ValueError, match="the batch came without"):
        strategy.loss_terms(encoder, Embedded(batch.labels, batch.image, batch.text))


def test_heads_and_strategy_belong_together_and_a_config_that_parts_them_is_refused() -> None:
    hashing = {"strategy": "domain_uncertainty_hashing"}
    assert any("set encoder.hash_bits" in problem for problem in check(parse(hashing)))
    heads = {"encoder": {"name": "small_resnet", "hash_bits": 32}}
    assert any("does not train the heads" in problem for problem in check(parse(heads)))
    assert not check(parse({**hashing, **heads, "index": {"kind": "binary"}}))
    odd = {"encoder": {"name": "small_resnet", "hash_bits": 20}}
    assert any("multiple of 8" in problem for problem in check(parse({**hashing, **odd})))
    with pytest.raises(ConfigError, match="codes are not whitened"):
        build_encoder("small_resnet", {"hash_bits": 8, "whitening": {}}, with_text=True, seed=0)
