"""Importance is a mean over single items: what that means, written as loops, and what it must not depend on."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from perdure.losses import batch_triplet, cross_entropy_over, unit_rows
from perdure.memory.importance import fisher, per_mean, sensitivity
from perdure.records import Batch, Embedded


class TinyEncoder(nn.Module):
    """Pictures (B, 3, 4, 4) -> (B, 5) and tokens (B, L) -> (B, 5), with BatchNorm; a classifier beside them."""

    def __init__(self, *, unit: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.unit = unit
        self.image = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))
        self.words = nn.Embedding(9, 5)
        self.lstm = nn.LSTM(5, 5, batch_first=True)
        self.classifier = nn.Linear(5, 6)

    def forward(self, images: Tensor, tokens: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        embeddings = [self.image(images), None if tokens is None else self.lstm(self.words(tokens))[0].amax(dim=1)]
        image, text = (functional.normalize(each, dim=1) if self.unit and each is not None else each for each in embeddings)
        assert image is not None
        return image, text


def tiny(*, unit: bool = False) -> TinyEncoder:
    return TinyEncoder(unit=unit).double().eval()


def group(seed: int = 0, size: int = 6, *, text: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(size, 3, 4, 4, generator=generator, dtype=torch.float64)
    tokens = torch.randint(1, 9, (size, 3), generator=generator) if text else None
    return Batch(torch.arange(size), torch.arange(size) % 3, images, tokens)


def ranking(encoder: TinyEncoder, batch: Embedded) -> Tensor:
    """A mean over items that has triplets, a classifier, and captions in it."""
    image = unit_rows(batch.image)
    loss = batch_triplet(image, batch.labels, margin=0.5, mining="hard")
    loss = loss + cross_entropy_over(encoder.classifier(batch.image), batch.labels, torch.arange(6))
    return loss if batch.text is None else loss + (image - unit_rows(batch.text)).square().sum(dim=1).mean()


def measured(encoder: TinyEncoder, groups: list[Batch]) -> dict[str, Tensor]:
    return fisher(encoder, groups, lambda batch: ranking(encoder, batch), heads=[encoder.classifier])


def own_gradients(encoder: TinyEncoder, batch: Batch, item: int) -> dict[str, Tensor]:
    """d l_i / d theta, by hand: a copy of the embeddings and of the logits for every item, of which one only has a graph."""
    image, text = encoder(batch.images, batch.tokens)
    logits = encoder.classifier(image)
    mine = torch.arange(len(image)) == item
    image, logits = (torch.where(mine[:, None], each, each.detach()) for each in (image, logits))
    unit = unit_rows(image)
    loss = batch_triplet(unit, batch.labels, margin=0.5, mining="hard") + functional.cross_entropy(logits, batch.labels)
    if text is not None:
        loss = loss + (unit - unit_rows(torch.where(mine[:, None], text, text.detach()))).square().sum(dim=1).mean()
    gradients = torch.autograd.grad(len(image) * loss, list(encoder.parameters()), allow_unused=True)
    pairs = zip(encoder.named_parameters(), gradients, strict=True)
    return {name: torch.zeros_like(parameter) if gradient is None else gradient for (name, parameter), gradient in pairs}


@pytest.mark.parametrize("text", [False, True], ids=["images", "images and text"])
def test_fisher_is_the_mean_over_items_of_the_squared_gradient_of_their_own_loss(text: bool) -> None:
    encoder, groups = tiny(), [group(0, text=text), group(1, 9, text=text)]
    gradients = [own_gradients(encoder, batch, item) for batch in groups for item in range(len(batch.labels))]
    for name, values in measured(encoder, groups).items():
        torch.testing.assert_close(values, sum(each[name] ** 2 for each in gradients) / 15, msg=lambda said, name=name: f"{name}: {said}")


def test_the_own_losses_of_a_group_average_to_its_gradient_and_no_mean_is_squared() -> None:
    encoder, batch = tiny(), group(0)
    gradients = [own_gradients(encoder, batch, item) for item in range(6)]
    loss = ranking(encoder, Embedded(batch.labels, *encoder(batch.images, batch.tokens)))
    whole = dict(zip([name for name, _ in encoder.named_parameters()], torch.autograd.grad(loss, list(encoder.parameters())), strict=True))
    for name, gradient in whole.items():
        torch.testing.assert_close(sum(each[name] for each in gradients) / 6, gradient)
    values = measured(encoder, [batch])
    assert sum(float(each.sum()) for each in values.values()) > 1.2 * sum(float(each.square().sum()) for each in whole.values())


def test_for_a_mean_over_items_the_own_loss_is_the_items_term_and_the_group_does_not_matter() -> None:
    encoder, batch = tiny(), group(0, 8, text=False)
    cut = [[Batch(batch.rows[s : s + k], batch.labels[s : s + k], batch.images[s : s + k]) for s in range(0, 8, k)] for k in (1, 2, 4, 8)]
    by_group = [
        fisher(
            encoder,
            groups,
            lambda embedded: functional.cross_entropy(encoder.classifier(embedded.image), embedded.labels),
            heads=[encoder.classifier],
        )
        for groups in cut
    ]
    for values in by_group[1:]:
        for name, value in values.items():
            torch.testing.assert_close(value, by_group[0][name])
    assert float(by_group[0]["classifier.weight"].sum()) > 0


def test_sensitivity_is_the_mean_over_items_of_the_absolute_gradient_of_the_squared_length() -> None:
    encoder, groups = tiny(), [group(0), group(1, 4)]
    names, parameters = zip(*encoder.named_parameters(), strict=True)
    totals = [torch.zeros_like(parameter) for parameter in parameters]
    for batch in groups:
        for item in range(len(batch.labels)):
            image, text = encoder(batch.images[item : item + 1], batch.tokens[item : item + 1])  # type: ignore[index]
            assert text is not None
            gradients = torch.autograd.grad((image**2).sum() + (text**2).sum(), parameters, allow_unused=True)
            for total, gradient in zip(totals, gradients, strict=True):
                total += 0 if gradient is None else gradient.abs() / 10
    values = sensitivity(encoder, groups)
    for name, expected in zip(names, totals, strict=True):
        torch.testing.assert_close(values[name], expected)
    assert float(totals[names.index("lstm.weight_hh_l0")].sum()) > 0 and not totals[names.index("classifier.weight")].any()


def test_fisher_is_above_zero_on_an_encoder_whose_rows_have_unit_length_and_sensitivity_refuses_it() -> None:
    encoder = tiny(unit=True)
    assert float(measured(encoder, [group(0)])["image.0.weight"].sum()) > 1e-3
    with pytest.raises(ValueError, match="every one of these has length 1; leave the normalisation to the losses"):
        sensitivity(encoder, [group(0)])
    with pytest.raises(ValueError, match="length 1"):
        sensitivity(encoder, [group(0, text=False)])


def test_a_row_that_has_length_one_by_chance_is_no_reason_to_refuse() -> None:
    encoder, batch = tiny(), group(0, text=False)
    with torch.no_grad():
        length = float(encoder(batch.images[:1])[0].norm())
        encoder.image[4].weight /= length
        encoder.image[4].bias /= length
    assert float(sensitivity(encoder, [batch])["image.0.weight"].sum()) > 0


def test_measuring_leaves_no_trace_on_the_encoder() -> None:
    encoder = tiny()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    measured(encoder, [group(0)])
    sensitivity(encoder, [group(0)])
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert not encoder.classifier._forward_hooks


def test_only_what_learns_has_an_importance_and_running_statistics_have_none() -> None:
    encoder = tiny()
    encoder.words.requires_grad_(False)
    for values in (measured(encoder, [group(0)]), sensitivity(encoder, [group(0)])):
        assert set(values) == {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
        assert "words.weight" not in values and not any("running" in name for name in values)
        assert all(bool((value >= 0).all()) for value in values.values())


def test_a_loss_that_asks_nothing_of_the_encoder_gives_zeros() -> None:
    values = fisher(tiny(), [group(0)], lambda batch: torch.zeros(()))
    assert not any(value.any() for value in values.values())
    assert not any(value.any() for value in per_mean(values).values())


def test_in_units_of_its_mean_importance_has_no_scale() -> None:
    values = measured(tiny(), [group(0)])
    scaled = per_mean({name: 1e-7 * value for name, value in values.items()})
    for name, value in per_mean(values).items():
        torch.testing.assert_close(value, scaled[name])
    assert float(torch.cat([value.flatten() for value in scaled.values()]).mean()) == pytest.approx(1)


def test_training_mode_and_no_items_are_refused() -> None:
    with pytest.raises(ValueError, match=r"call encoder.eval\(\)"):
        sensitivity(tiny().train(), [group(0)])
    with pytest.raises(ValueError, match="there are none"):
        sensitivity(tiny(), [])
