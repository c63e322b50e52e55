import copy

import pytest
import torch

from perdure.encoders import ENCODERS, POOLINGS, TEXT_TOWERS, build_encoder, small_resnet
from perdure.errors import BadQuery, ConfigError

CAPTIONS = ["a striped blue circle", "a red star in the snow"]
TINY = {"width": 4, "embedding_dim": 8, "image_size": 16}


def tiny(*, with_text: bool = True, seed: int = 0, **options):
    encoder = build_encoder("small_resnet", TINY | options, with_text=with_text, seed=seed)
    encoder.grow(num_classes=3, captions=CAPTIONS if with_text else ())
    return encoder


def test_forward_gives_raw_float32_embeddings_of_both_towers_also_under_bf16() -> None:
    encoder, images = tiny(), torch.rand(2, 3, 16, 16)
    tokens = encoder.vocabulary.encode(CAPTIONS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image, text = encoder(images, tokens)
    assert image.shape == text.shape == (2, 8) and image.dtype == text.dtype == torch.float32
    assert not torch.allclose(image.norm(dim=1), torch.ones(2))
    image, text = encoder(images)
    assert image.shape == (2, 8) and text is None


def test_without_captions_there_is_no_text_tower_no_vocabulary_and_text_queries_are_refused() -> None:
    encoder = tiny(with_text=False)
    encoder.grow(num_classes=4, captions=["ignored"])
    assert encoder.text is None and encoder.vocabulary is None
    assert encoder(torch.rand(2, 3, 16, 16), torch.tensor([[1], [2]]))[1] is None
    with pytest.raises(BadQuery, match="no text tower"):
        encoder.embed_texts(["a fox"])


def test_text_none_switches_the_tower_off_where_there_are_captions() -> None:
    assert build_encoder("small_resnet", TINY | {"text": "none"}, with_text=True, seed=0).text is None


def test_an_explicit_text_tower_without_captions_is_refused() -> None:
    with pytest.raises(ConfigError, match="no captions"):
        build_encoder("small_resnet", TINY | {"text": {"name": "bilstm"}}, with_text=False, seed=0)


def test_options_of_the_text_tower_reach_it_and_a_misspelt_one_gets_a_suggestion() -> None:
    encoder = build_encoder("small_resnet", TINY | {"text": {"name": "bilstm", "hidden": 5}}, with_text=True, seed=0)
    assert encoder.text.lstm.hidden_size == 5
    problems = ENCODERS.problems("small_resnet", {"text": {"name": "bilstm", "hiden": 5}, "widht": 3}, at="encoder")
    assert "Did you mean 'hidden'?" in problems[0] and problems[1] == "encoder.widht: no such option. Did you mean 'width'?"
    with pytest.raises(ConfigError, match="Did you mean 'bilstm'"):
        build_encoder("small_resnet", {"text": "bilstn"}, with_text=True, seed=0)


def test_catalogs_hold_what_the_configs_name() -> None:
    assert set(ENCODERS) == {"small_resnet", "torchvision"} and set(TEXT_TOWERS) == {"bilstm", "bag_of_words"}


def test_a_direct_call_makes_the_encoder_that_the_catalog_makes() -> None:
    assert small_resnet(False, embedding_dim=8).describe() == ENCODERS.build("small_resnet", {"embedding_dim": 8}, False).describe()


def test_embeddings_are_unit_rows_without_gradient_and_leave_the_mode_as_it_was() -> None:
    encoder, images = tiny().train(), torch.rand(3, 3, 16, 16)
    running = encoder.image.trunk[0][1].running_mean.clone()
    for rows in (encoder.embed_images(images), encoder.embed_texts([*CAPTIONS, "", "\U0001f642"])):
        assert not rows.requires_grad
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
    assert encoder.training and torch.equal(encoder.image.trunk[0][1].running_mean, running)
    torch.testing.assert_close(encoder.embed_images(images)[:1], encoder.embed_images(images[:1]), rtol=1e-4, atol=1e-5)


def test_the_encoder_subtracts_its_own_mean() -> None:
    encoder = tiny().eval()
    images = torch.rand(2, 3, 16, 16)
    shifted = copy.deepcopy(encoder)
    shifted.image.mean += 0.25
    torch.testing.assert_close(shifted(images + 0.25)[0], encoder(images)[0], rtol=1e-4, atol=1e-5)


def test_growing_keeps_old_embeddings_logits_and_ids() -> None:
    encoder, images = tiny().eval(), torch.rand(2, 3, 16, 16)
    image, text = encoder.embed_images(images), encoder.embed_texts(CAPTIONS)
    logits, words = encoder.classifier(image), encoder.vocabulary.words
    encoder.grow(num_classes=5, captions=["a dotted green moon"])
    assert torch.equal(encoder.embed_images(images), image) and torch.equal(encoder.embed_texts(CAPTIONS), text)
    torch.testing.assert_close(encoder.classifier(image)[:, :3], logits)
    assert encoder.vocabulary.words == (*words, "dotted", "green", "moon")


def test_a_frozen_deepcopy_is_untouched_by_training_and_growing_the_student() -> None:
    student = tiny()
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student.grow(num_classes=6, captions=["a dotted green moon"])
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    images, tokens = torch.rand(4, 3, 16, 16), student.vocabulary.encode(["a dotted moon"] * 4)
    image, text = student(images, tokens)
    (image.square().sum() + text.square().sum() + student.classifier(image).square().sum()).backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert len(teacher.vocabulary) < len(student.vocabulary)
    assert teacher(images, tokens)[1].shape == (4, 8)


def test_frozen_batch_norm_keeps_its_statistics_while_training_and_can_be_thawed() -> None:
    encoder, images = tiny(), torch.rand(4, 3, 16, 16)
    norm = encoder.image.trunk[0][1]
    assert encoder.has_batch_norm
    encoder.set_batch_norm_frozen(True)
    encoder.train()
    before = norm.running_mean.clone()
    encoder(images)
    assert encoder.training and not norm.training and torch.equal(norm.running_mean, before)
    assert copy.deepcopy(encoder).train().image.trunk[0][1].training is False
    encoder.set_batch_norm_frozen(False)
    encoder(images)
    assert norm.training and not torch.equal(norm.running_mean, before)


def test_the_same_seed_gives_the_same_weights_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one, other, different = tiny(), tiny(), tiny(seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert not torch.equal(one.image.projection.weight, different.image.projection.weight)


def test_memory_format_does_not_change_what_is_computed() -> None:
    encoder, images = tiny().eval(), torch.rand(2, 3, 16, 16)
    planar = copy.deepcopy(encoder).to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(planar(images)[0], encoder(images)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("images", [torch.rand(3, 16, 16), torch.rand(2, 1, 16, 16), torch.zeros(2, 3, 16, 16, dtype=torch.uint8)])
def test_refuses_what_is_not_a_batch_of_colour_pictures(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected images"):
        tiny()(images)


@pytest.mark.parametrize("pooling", list(POOLINGS))
@pytest.mark.parametrize("classifier", ["cosine", "linear"])
def test_learns_to_tell_two_colours_apart_in_bf16(pooling: str, classifier: str) -> None:
    encoder = tiny(with_text=False, width=8, pooling=pooling, classifier=classifier).train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(40):
        labels = torch.randint(2, (16,), generator=generator)
        images = torch.rand(16, 3, 16, 16, generator=generator) * 0.5
        images[torch.arange(16), labels] += 0.4
        with torch.autocast("cpu", dtype=torch.bfloat16):
            image, _ = encoder(images.contiguous(memory_format=torch.channels_last))
        loss = torch.nn.functional.cross_entropy(encoder.classifier(image), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.1 < losses[0]


# One layer behind both towers


def test_separate_projections_are_the_default_and_the_towers_are_drawn_alike_either_way() -> None:
    separate, default, shared = tiny(projection="separate"), tiny(), tiny(projection="shared")
    assert separate.joint is None and list(default.state_dict()) == list(separate.state_dict())
    assert shared.state_dict().keys() - default.state_dict().keys() == {"joint.weight", "joint.bias"}
    assert all(torch.equal(value, shared.state_dict()[name]) for name, value in default.state_dict().items())


def test_a_shared_projection_is_one_linear_layer_behind_both_towers_also_under_bf16() -> None:
    encoder, images = tiny(projection="shared"), torch.rand(2, 3, 16, 16)
    tokens = encoder.vocabulary.encode(CAPTIONS)
    encoder.eval()
    for found, own in zip(encoder(images, tokens), (encoder.image(images), encoder.text(tokens)), strict=True):
        torch.testing.assert_close(found, own @ encoder.joint.weight.T + encoder.joint.bias)
    with torch.no_grad():
        torch.testing.assert_close(encoder.embed_images(images), torch.nn.functional.normalize(encoder(images)[0], dim=1))
        torch.testing.assert_close(encoder.embed_texts(CAPTIONS), torch.nn.functional.normalize(encoder(images, tokens)[1], dim=1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert {each.dtype for each in encoder(images, tokens)} == {torch.float32}


def test_frozen_towers_freeze_the_layer_that_they_share() -> None:
    encoder = tiny(projection="shared")
    encoder.set_towers_frozen(True)
    assert {name for name, parameter in encoder.named_parameters() if parameter.requires_grad} == {"classifier.weight"}
