"""What every text tower is: words to embeddings, with rows of words that grow."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from perdure.encoders.growing import grown
from perdure.encoders.vocabulary import PADDING, UNKNOWN, Vocabulary

__all__ = ["TextTower"]


class TextTower(nn.Module, ABC):
    """Word embeddings, and what a tower makes of them in `read`.

    Words with an id that this tower has no row for count as unknown: a frozen teacher reads the captions of the newest task with the
    vocabulary that it had when it was frozen.

    Args:
        word_dim: width of a word's embedding.
        seed: of the rows of new words.
    """

    def __init__(self, *, word_dim: int, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.words = nn.Parameter(torch.empty(0, word_dim))
        self.grow(len(Vocabulary()))

    @property
    def num_words(self) -> int:
        """Rows of the word embedding, padding and unknown included."""
        return self.words.shape[0]

    def grow(self, num_words: int) -> None:
        """Append rows until there are `num_words`; rows of old words stay as they are.

        Raises:
            ValueError: fewer words than there are.
        """
        self.words = grown(self.words, num_words, std=self.words.shape[1] ** -0.5, seed=self.seed)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) int64 word ids, 0 = padding -> (B, D) float32, before normalisation; padding does not change the result.

        Float32 also under autocast: the tower is a small part of a step, and a recurrent net gains little from bfloat16 on a CPU.

        Raises:
            ValueError: not a matrix of word ids.
        """
        if tokens.ndim != 2 or tokens.shape[1] < 1:
            raise ValueError(f"expected word ids (B, L) with L >= 1; got {tuple(tokens.shape)}.")
        tokens = tokens.masked_fill(tokens >= self.num_words, UNKNOWN)
        empty_B = (tokens == PADDING).all(dim=1)
        tokens = torch.cat([tokens[:, :1].masked_fill(empty_B[:, None], UNKNOWN), tokens[:, 1:]], dim=1)
        with torch.autocast(tokens.device.type, enabled=False):
            return self.read(self.words[tokens], (tokens != PADDING).sum(dim=1))

    @abstractmethod
    def read(self, words: Tensor, lengths: Tensor) -> Tensor:
        """(B, L, word_dim) float32 words, of which the first `lengths` (B,) >= 1 are real -> (B, D)."""
