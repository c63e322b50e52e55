"""A bidirectional LSTM over the words of a caption."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from perdure.encoders.text_tower import TextTower

__all__ = ["BiLSTM"]


class BiLSTM(TextTower):
    """Words -> embedding -> LSTM in both directions -> maximum or mean over the words -> linear layer to D.

    Sequences are packed, so the backward direction starts at the last real word and padding changes nothing.

    Args:
        embedding_dim: D.
        seed: of the rows of new words.
        word_dim: width of a word's embedding.
        hidden: units of each direction.
        pooling: "max" or "mean" over the words of a caption.
        dropout: of word embeddings and of the pooled vector, while training.
    """

    def __init__(
        self,
        embedding_dim: int,
        seed: int = 0,
        *,
        word_dim: int = 128,
        hidden: int = 128,
        pooling: Literal["max", "mean"] = "max",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(word_dim=word_dim, seed=seed)
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(word_dim, hidden, batch_first=True, bidirectional=True)
        self.projection = nn.Linear(2 * hidden, embedding_dim)

    def read(self, words: Tensor, lengths: Tensor) -> Tensor:
        """See `TextTower.read`."""
        packed = pack_padded_sequence(self.dropout(words), lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        is_padding = torch.arange(states.shape[1], device=states.device) >= lengths[:, None]
        if self.pooling == "max":
            pooled = states.masked_fill(is_padding[:, :, None], -torch.inf).amax(dim=1)
        else:
            pooled = states.sum(dim=1) / lengths[:, None]
        return self.projection(self.dropout(pooled))
