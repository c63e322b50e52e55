"""What pictures made from an encoder promise: they meet its memory of the data, and it takes them for their classes."""

import logging

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from perdure.encoders import Encoder, build_encoder
from perdure.errors import ConfigError
from perdure.losses import batch_norm_distance, channel_statistics, cluster_margin, unit_rows
from perdure.memory.inversion import InversionOptions, Inverted, batch_norm_layers, invert, starting_noise

CLASSES, SIDE = 4, 16
SHORT = InversionOptions(pictures=24, iterations=80, lr=0.2)


def real(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Stripes: the class is their direction and colour."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    waves = torch.sin(torch.arange(SIDE) * 1.2 + 6 * torch.rand(count, 1, generator=generator))
    lying = waves[:, None, :].expand(count, SIDE, SIDE)
    stripes = torch.where((labels % 2 == 0)[:, None, None], lying, lying.transpose(1, 2))
    colours = torch.tensor([[1, 0.2, 0.2], [0.2, 0.2, 1], [0.2, 1, 0.2], [1, 1, 0.2]])[labels]
    pictures = 0.5 + 0.35 * stripes[:, None] * colours[:, :, None, None]
    return (pictures + 0.05 * torch.randn(pictures.shape, generator=generator)).clamp(0, 1), labels


@pytest.fixture(scope="module")
def trained() -> Encoder:
    encoder = build_encoder("small_resnet", {"embedding_dim": 16, "width": 6, "image_size": SIDE}, with_text=False, seed=0)
    encoder.grow(num_classes=CLASSES)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2)
    encoder.train()
    for step in range(40):
        pictures, labels = real(32, step)
        optimizer.zero_grad()
        cross_entropy(encoder.classifier(encoder.image(pictures)), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return encoder.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def made(trained: Encoder) -> Inverted:
    return make(trained, SHORT)


def make(encoder: Encoder, options: InversionOptions, seed: int = 5, classes: int = CLASSES) -> Inverted:
    return invert(encoder.image, torch.arange(classes), options, image_size=SIDE, seed=seed, logits=encoder.classifier)


def distance(encoder: Encoder, pictures: Tensor) -> float:
    """(7.4) of some pictures, by other hooks than the code's."""
    layers = batch_norm_layers(encoder.image)
    met: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    handles = [
        layer.register_forward_pre_hook(lambda layer, inputs: met.update({layer: channel_statistics(inputs[0])})) for layer in layers
    ]
    encoder.image(pictures)
    for handle in handles:
        handle.remove()
    return float(batch_norm_distance([met[layer] for layer in layers], [(layer.running_mean, layer.running_var) for layer in layers]))  # pyright: ignore[reportArgumentType]


def retrieved(encoder: Encoder, pictures: Tensor, labels: Tensor) -> float:
    """The share of the pictures whose nearest real picture, as the encoder sees them, is of their class."""
    gallery, of_gallery = real(80, 1000)
    nearest = (unit_rows(encoder.image(pictures)) @ unit_rows(encoder.image(gallery)).T).argmax(dim=1)
    return float((of_gallery[nearest] == labels).float().mean())


def test_the_batch_norm_distance_falls_to_a_tenth_and_below(trained: Encoder, made: Inverted) -> None:
    noise = starting_noise(24, SHORT, image_size=SIDE, seed=5)
    start, end = distance(trained, noise), distance(trained, made.pictures.float())
    assert end < 0.1 * start
    assert float(made.curve[0]) == pytest.approx(start, rel=0.2)  # but for the first shift
    assert float(made.curve[-1]) < 0.1 * float(made.curve[0])


def test_the_teacher_takes_the_pictures_for_their_class_and_noise_not(trained: Encoder, made: Inverted) -> None:
    noise = starting_noise(24, SHORT, image_size=SIDE, seed=5)
    assert retrieved(trained, made.pictures.float(), made.labels) > 0.9
    assert retrieved(trained, noise, made.labels) < 0.5


def test_by_cluster_alone_the_pictures_form_clusters(trained: Encoder) -> None:
    alone = SHORT.model_copy(update={"targets": "cluster", "cluster": 1.0, "batch_norm": 0.0, "jitter": 0.0, "flip": False})
    noise, made = starting_noise(24, alone, image_size=SIDE, seed=5), make(trained, alone)
    start, end = (float(cluster_margin(unit_rows(trained.image(each)), made.labels)) for each in (noise, made.pictures.float()))
    assert end < 3.5 < 4 < start  # 4 classes on top of each other miss the margin of 1 four times


def test_pictures_are_equally_many_of_each_class_in_order_and_in_range(made: Inverted) -> None:
    assert made.pictures.shape == (24, 3, SIDE, SIDE) and made.pictures.dtype == torch.float16
    assert made.labels.tolist() == [label for label in range(CLASSES) for _ in range(6)]
    assert float(made.pictures.min()) >= 0 and float(made.pictures.max()) <= 1
    assert made.curve.shape == (80,) and made.curve.isfinite().all()


def test_the_same_seed_gives_the_same_pictures_to_the_bit_and_another_seed_others(trained: Encoder) -> None:
    few = SHORT.model_copy(update={"iterations": 4})
    torch.manual_seed(1)
    one = make(trained, few)
    torch.manual_seed(2)
    again, other = make(trained, few), make(trained, few, seed=6)
    assert torch.equal(one.pictures, again.pictures) and torch.equal(one.curve, again.curve)
    assert not torch.equal(one.pictures, other.pictures)


def test_the_best_pictures_are_kept_not_the_last(trained: Encoder) -> None:
    # A step this long throws the colours to their limits.
    wild = InversionOptions(pictures=8, iterations=12, lr=1000.0, decay=False, jitter=0, flip=False, classifier=0.0)
    made = make(trained, wild)
    assert float(made.curve[-1]) > 2 * float(made.curve.min()), "the test is about a loss that rises again"
    assert distance(trained, made.pictures.float()) == pytest.approx(float(made.curve.min()), rel=0.01)


def test_the_tower_stays_as_it_was_and_keeps_no_hook(trained: Encoder) -> None:
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    make(trained, SHORT.model_copy(update={"iterations": 2}))
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in before.items())
    assert not any(module._forward_hooks for module in trained.modules())
    assert all(parameter.grad is None for parameter in trained.parameters())


@pytest.mark.parametrize(("targets", "per_batch"), [("classifier", {0, 1, 2, 3}), ("cluster", {0, 1})])
def test_batches_bound_the_memory_and_mix_all_classes_unless_clusters_need_whole_ones(
    trained: Encoder, targets: str, per_batch: set[int]
) -> None:
    seen: list[Tensor] = []
    options = InversionOptions.model_validate({"pictures": 32, "iterations": 1, "batch_size": 16, "targets": targets})
    handle = trained.image.register_forward_hook(lambda module, inputs, output: seen.append(output))
    made = make(trained, options)
    handle.remove()
    assert [len(each) for each in seen] == [16, 16]
    rows = trained.image(made.pictures.float())
    of_first = {int(made.labels[int((rows - row).norm(dim=1).argmin())]) for row in seen[0]}
    assert len(of_first) == len(per_batch)


def test_many_classes_are_a_random_choice_and_few_pictures_are_never_less_than_one_of_a_class(trained: Encoder) -> None:
    options = InversionOptions(pictures=12, per_class=4, iterations=1, targets="cluster")
    many = make(trained, options, classes=100)
    assert len(many.labels.unique()) == 3 and len(many.labels) == 12
    assert make(trained, options, seed=6, classes=100).labels.tolist() != many.labels.tolist()
    assert len(make(trained, InversionOptions(pictures=1, iterations=1), classes=2).labels) == 1


def test_a_training_batch_has_several_of_each_drawn_class(made: Inverted) -> None:
    rows = made.draw(8, torch.Generator().manual_seed(0))
    counts = made.labels[rows].bincount()
    assert len(rows.unique()) == 8 and sorted(counts[counts > 0].tolist()) == [4, 4]
    assert (
        made.draw(8, torch.Generator().manual_seed(0)).tolist() == rows.tolist() != made.draw(8, torch.Generator().manual_seed(1)).tolist()
    )
    assert len(made.draw(20, torch.Generator())) == 20 and len(made.draw(20, torch.Generator()).unique()) == 20
    assert len(made.draw(100, torch.Generator()).unique()) == 24


def test_progress_is_logged(trained: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="perdure.memory.inversion"):
        make(trained, SHORT.model_copy(update={"iterations": 8}))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4 and lines[-1].startswith("inversion: batch 1 of 1, iteration 8: BatchNorm ")


class LayerNormTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(SIDE)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(images).mean(dim=2).flatten(1)


def test_a_tower_without_running_statistics_is_refused_with_what_to_do() -> None:
    for tower in (LayerNormTower(), nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))):
        with pytest.raises(ConfigError, match=r"this encoder has none .*choose a backbone with BatchNorm .*or strategy.inversion=null"):
            invert(tower, torch.arange(2), SHORT, image_size=SIDE, seed=0)


def test_a_target_that_needs_a_classifier_is_refused_without_one(trained: Encoder) -> None:
    with pytest.raises(ConfigError, match="targets=both needs a classifier"):
        invert(trained.image, torch.arange(2), InversionOptions(targets="both"), image_size=SIDE, seed=0)


def test_a_broken_encoder_is_named_instead_of_giving_pictures_of_nothing(trained: Encoder) -> None:
    with pytest.raises(FloatingPointError, match="no loss of batch 1 of 1 was finite"):
        invert(trained.image, torch.arange(2), SHORT, image_size=SIDE, seed=0, logits=lambda z: z * float("nan"))
