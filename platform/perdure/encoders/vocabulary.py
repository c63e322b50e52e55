"""Words of captions and their ids; ids are only ever appended, so a word keeps its id for the life of a run."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["PADDING", "UNKNOWN", "Vocabulary", "split_words"]

PADDING = 0
UNKNOWN = 1
_FIRST = 2  # id of the first word
_ASCII_WORD = re.compile(r"[a-z0-9]+(?:'[a-z0-9]+)*")


def split_words(text: str) -> list[str]:
    """Words of a text in any script, after NFKC and case folding: `"Don't STOP, Straße!"` -> `["don't", "stop", "strasse"]`.

    Letters, digits and combining marks make words, and an apostrophe inside one stays. Scripts that are written without spaces
    (Chinese, Japanese) give one word a character.
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    if text.isascii():
        return _ASCII_WORD.findall(text)
    words: list[str] = []
    word = ""
    for character in text:
        if _stands_alone(character):
            words += [word, character]
            word = ""
        elif unicodedata.category(character)[0] in "LNM" or (character == "'" and word):
            word += character
        else:
            words.append(word)
            word = ""
    words.append(word)
    stripped = (word.rstrip("'") for word in words)
    return [word for word in stripped if word]


def _stands_alone(character: str) -> bool:
    """Whether a character is a word of its own: ideographs, hiragana and katakana."""
    return "\u3040" <= character <= "\u30ff" or "\u3400" <= character <= "\u9fff" or "\U00020000" <= character <= "\U0003ffff"


class Vocabulary:
    """Known words in the order in which they came; id 0 is padding, id 1 any word that is not known."""

    def __init__(self, words: Iterable[str] = ()) -> None:
        self._words: list[str] = []
        self._ids: dict[str, int] = {}
        self._append(words)

    @property
    def words(self) -> tuple[str, ...]:
        """The known words; word i has id i + 2."""
        return tuple(self._words)

    def __len__(self) -> int:
        """Number of ids, padding and unknown included."""
        return len(self._words) + _FIRST

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def grow(self, captions: Iterable[str]) -> int:
        """Append the words of captions that are new, in order of appearance; returns how many were."""
        before = len(self._words)
        for caption in captions:
            self._append(split_words(caption))
        return len(self._words) - before

    def encode(self, texts: Sequence[str], max_words: int = 32) -> Tensor:
        """Word ids of texts, as wide as the longest of them needs.

        Args:
            texts: B texts; one without any word counts as one unknown word.
            max_words: words after the first max_words are cut off.
        Returns:
            (B, L) int64, L <= max_words, 0 = padding, 1 = a word that is not known.
        Raises:
            ValueError: max_words < 1, or `texts` is one string.
        """
        if isinstance(texts, str):
            raise ValueError("encode takes a sequence of texts, and got one string; wrap it in a list.")
        if max_words < 1:
            raise ValueError(f"encode: max_words={max_words}; it must be 1 or more.")
        rows = [[self._ids.get(word, UNKNOWN) for word in split_words(text)[:max_words]] or [UNKNOWN] for text in texts]
        tokens_BL = torch.full((len(rows), max(map(len, rows), default=1)), PADDING, dtype=torch.int64)
        for row, ids in enumerate(rows):
            tokens_BL[row, : len(ids)] = torch.tensor(ids)
        return tokens_BL

    def _append(self, words: Iterable[str]) -> None:
        for word in words:
            if word not in self._ids:
                self._ids[word] = len(self._words) + _FIRST
                self._words.append(word)
