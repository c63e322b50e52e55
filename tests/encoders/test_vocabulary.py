import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perdure.encoders import PADDING, UNKNOWN, Vocabulary, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A striped, BLUE circle!", ["a", "striped", "blue", "circle"]),
        ("don't stop, the dogs' bone", ["don't", "stop", "the", "dogs", "bone"]),
        ("don\u2019t Stra\u00dfe", ["don't", "strasse"]),
        ("\uff26\uff35\uff2c\uff2c width \ufb01sh", ["full", "width", "fish"]),
        ("e\u0301t\u00e9 \u00e9te\u0301", ["\u00e9t\u00e9", "\u00e9t\u00e9"]),
        (
            "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
            ["\u0928\u092e\u0938\u094d\u0924\u0947", "\u0926\u0941\u0928\u093f\u092f\u093e"],
        ),
        ("\u7ea2\u8272 fox", ["\u7ea2", "\u8272", "fox"]),
        ("snake_case 3d", ["snake", "case", "3d"]),
        ("\U0001f642 ... ''", []),
        ("", []),
    ],
)
def test_words_of_texts_in_several_scripts(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_ids_follow_first_appearance_after_padding_and_unknown() -> None:
    vocabulary = Vocabulary()
    assert vocabulary.grow(["red fox", "a red star"]) == 4
    assert vocabulary.words == ("red", "fox", "a", "star")
    assert vocabulary.encode(["star of red", "fox"]).tolist() == [[5, UNKNOWN, 2], [3, PADDING, PADDING]]
    assert len(vocabulary) == 6 and "fox" in vocabulary and "of" not in vocabulary


@given(st.lists(st.text(max_size=30), max_size=6), st.lists(st.text(max_size=30), max_size=6))
def test_growing_never_changes_an_id_that_was_given_out(first: list[str], second: list[str]) -> None:
    vocabulary = Vocabulary()
    vocabulary.grow(first)
    words, tokens = vocabulary.words, vocabulary.encode(first)
    vocabulary.grow(second)
    assert vocabulary.words[: len(words)] == words
    assert torch.equal(vocabulary.encode(first), tokens)
    assert vocabulary.grow(first + second) == 0


@given(st.lists(st.text(), min_size=1, max_size=5), st.integers(1, 4))
def test_any_text_encodes_to_at_least_one_real_word_and_at_most_max_words(texts: list[str], max_words: int) -> None:
    tokens = Vocabulary().encode(texts, max_words)
    assert tokens.shape[0] == len(texts) and 1 <= tokens.shape[1] <= max_words
    assert (tokens[:, 0] == UNKNOWN).all()


@given(st.text())
def test_splitting_words_again_changes_nothing(text: str) -> None:
    words = split_words(text)
    assert split_words(" ".join(words)) == words


def test_refuses_one_string_and_no_words() -> None:
    with pytest.raises(ValueError, match="wrap it in a list"):
        Vocabulary().encode("a fox")
    with pytest.raises(ValueError, match="max_words=0"):
        Vocabulary().encode(["a fox"], 0)
