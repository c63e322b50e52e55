"""The bag of words: its formula in loops, and what a bag must not notice - order, padding, and words that come later."""

import copy
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.encoders import TEXT_TOWERS, build_encoder, load_encoder, save_encoder
from perdure.encoders.bag_of_words import BagOfWords
from perdure.encoders.vocabulary import Vocabulary
from perdure.errors import ConfigError

WORDS = st.lists(st.integers(1, 11), min_size=1, max_size=6)
TINY = {"embedding_dim": 8, "image_size": 16, "width": 4}


def tower(**options) -> BagOfWords:
    torch.manual_seed(0)
    made = BagOfWords(6, **{"word_dim": 7, "hidden": 5, "scales": (1, 2, 3, 7), **options})
    made.grow(12)
    return made.eval()


def relu(values: list[float]) -> list[float]:
    return [max(0.0, value) for value in values]


def linear(layer: torch.nn.Linear, values: list[float]) -> list[float]:
    weight, bias = layer.weight.tolist(), layer.bias.tolist()
    return [sum(w * value for w, value in zip(row, values, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


@settings(deadline=None, max_examples=30)
@given(WORDS)
def test_equals_the_formula_written_as_loops(caption: list[int]) -> None:
    made = tower()
    bag = [sum(made.words[word][channel].item() for word in caption) for channel in range(7)]
    heard: list[float] = []
    for scale, reader in zip((1, 2, 3, 7), made.readers, strict=True):
        windows = [bag[start : start + scale] for start in range(0, 7, scale)]
        assert len(windows) == math.ceil(7 / scale)
        heard += relu(linear(reader, [sum(window) / len(window) for window in windows]))
    expected = linear(made.projection, relu(linear(made.fusion, heard)))
    torch.testing.assert_close(made(torch.tensor([caption]))[0], torch.tensor(expected), rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_the_order_of_words_does_not_change_a_caption(data: st.DataObject) -> None:
    made, caption = tower(), data.draw(WORDS)
    other = data.draw(st.permutations(caption))
    torch.testing.assert_close(made(torch.tensor([other])), made(torch.tensor([caption])), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.lists(WORDS, min_size=1, max_size=4), st.integers(0, 5))
def test_padding_and_neighbours_do_not_change_a_row(rows: list[list[int]], padding: int) -> None:
    made = tower()
    width = max(map(len, rows)) + padding
    together = made(torch.tensor([row + [0] * (width - len(row)) for row in rows]))
    for row, embedding in zip(rows, together, strict=True):
        torch.testing.assert_close(embedding, made(torch.tensor([row]))[0], rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=4), st.lists(st.text(max_size=20), max_size=4))
def test_words_that_come_later_leave_old_captions_as_they_were_bit_for_bit(old: list[str], new: list[str]) -> None:
    made, vocabulary = tower(), Vocabulary()
    vocabulary.grow(old)
    made.grow(max(12, len(vocabulary)))
    before = made(vocabulary.encode(old))
    vocabulary.grow(new)
    made.grow(max(made.num_words, len(vocabulary)) + 1)
    assert torch.equal(made(vocabulary.encode(old)), before) and before.isfinite().all()


def test_a_smaller_teacher_reads_new_words_as_unknown() -> None:
    student = tower()
    teacher = copy.deepcopy(student)
    student.grow(20)
    assert torch.equal(teacher(torch.tensor([[2, 15, 19]])), teacher(torch.tensor([[2, 1, 1]])))
    assert not torch.equal(student(torch.tensor([[2, 15, 19]])), student(torch.tensor([[2, 1, 1]])))


def test_a_word_that_comes_twice_counts_twice_and_an_empty_caption_is_one_unknown_word() -> None:
    made = tower()
    assert not torch.allclose(made(torch.tensor([[3, 3]])), made(torch.tensor([[3]])))
    assert torch.equal(made(torch.tensor([[0, 0, 0]])), made(torch.tensor([[1, 0, 0]])))


@pytest.mark.parametrize("scale", [1, 2, 3, 7])
def test_every_scale_takes_part(scale: int) -> None:
    made, tokens = tower(), torch.tensor([[2, 3, 4], [5, 6, 0]])
    before = made(tokens)
    with torch.no_grad():
        made.readers[made.scales.index(scale)].bias += 1.0
    assert not torch.allclose(made(tokens), before)


def test_every_parameter_and_only_the_words_of_the_caption_get_a_gradient() -> None:
    made = tower().train()
    made(torch.tensor([[2, 3, 0]])).sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())
    rows = made.words.grad.abs().sum(dim=1)
    assert (rows > 0).nonzero().flatten().tolist() == [2, 3]


def test_dropout_acts_while_training_and_not_afterwards() -> None:
    made, tokens = tower(dropout=0.5), torch.tensor([[2, 3, 4]])
    assert torch.equal(made(tokens), made(tokens))
    made.train()
    assert not torch.equal(made(tokens), made(tokens))


def test_is_float32_and_unchanged_under_bf16_autocast() -> None:
    made, tokens = tower(), torch.tensor([[2, 3, 0], [4, 5, 6]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = made(tokens)
    assert inside.dtype == torch.float32 and torch.equal(inside, made(tokens))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"scales": []}, "scales"),
        ({"scales": [1, 0]}, r"scales\.1"),
        ({"scales": [1, 2, 1]}, r"scales: \[1, 2, 1\] has one twice; each is read once"),
        ({"scales": [1, 10], "word_dim": 9}, "scales: 10 is wider than word_dim=9"),
        ({"scale": [1]}, "Did you mean 'scales'"),
    ],
)
def test_scales_that_cannot_be_are_refused(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        TEXT_TOWERS.build("bag_of_words", options, 6, 0)


def test_a_saved_encoder_with_a_bag_of_words_comes_back_bit_for_bit_whatever_the_script(tmp_path: Path) -> None:
    options = {**TINY, "text": {"name": "bag_of_words", "word_dim": 20, "hidden": 6, "scales": [1, 4]}}
    encoder = build_encoder("small_resnet", options, with_text=True, seed=3)
    encoder.grow(num_classes=2, captions=["sunset beach", "Köln 海 дом"])
    encoder.grow(num_classes=3, captions=["münchen \U0001f600"])
    save_encoder(encoder, tmp_path)
    loaded = load_encoder(tmp_path)
    texts = ["beach sunset", "дом köln 海", "MÜNCHEN", "", "\U0001f600"]
    embedded = loaded.embed_texts(texts)
    assert torch.equal(embedded, encoder.embed_texts(texts)) and loaded.describe() == encoder.describe()
    assert isinstance(loaded.text, BagOfWords) and loaded.text.scales == (1, 4)
    torch.testing.assert_close(embedded[:3], loaded.embed_texts(["sunset beach", "海 дом Köln", "münchen"]))
    assert torch.equal(embedded[3], embedded[4])
