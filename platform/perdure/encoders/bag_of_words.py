"""A bag of words at several scales: the words of a caption in no order, as user tags are.

After the text network of Li et al., "Self-Supervised Adversarial Hashing Networks for Cross-Modal Retrieval" (SSAH), CVPR 2018, which
the thesis, ch. 3, takes over. B batch, L words of a caption, E width of a word, S scales, H hidden, D embedding.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from perdure.encoders.text_tower import TextTower
from perdure.errors import ConfigError

__all__ = ["BagOfWords"]

Scale = Annotated[int, Field(ge=1)]


class BagOfWords(TextTower):
    """Words -> their sum, whatever their order -> means over windows of several widths, each read by a layer -> one layer -> D.

        w = sum_i e(word_i)                                             (E,) a word that comes twice counts twice
        p_s[j] = mean of w[j s], ..., w[j s + s - 1]                    (ceil(E / s),) the last window may be narrower
        h_s = relu(A_s p_s + a_s)                                       (H,) for each scale s
        f = relu(F [h_s1; ...; h_sS] + b)                               (H,)
        out = P f + c                                                   (D,)

    Args:
        embedding_dim: D.
        seed: of the rows of new words.
        word_dim: E.
        hidden: H; the thesis has 2000.
        scales: widths s of the windows, 1 to E, each once; five levels, as in SSAH.
        dropout: of the sum and of the fused vector, while training.
    Raises:
        ConfigError: a scale that comes twice or is wider than a word.
    Reading: a level of pooling is the width of its windows, so width 1 keeps the bag as it is.
    Deviations: SSAH pools a vector with an entry for each word of a fixed list. Here words are appended for the life of a run, and in a
        longer vector old words would get other neighbours; so what is pooled is that vector times the matrix of word embeddings, whose
        width stays. SSAH reads a level by a convolution of one weight and stretches it to the full width; here each level has a layer of
        its own, since a sum of embeddings has signs, and a rectified multiple of it would lose half of them.
    """

    def __init__(
        self,
        embedding_dim: int,
        seed: int = 0,
        *,
        word_dim: int = 128,
        hidden: int = 256,
        scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = (1, 2, 3, 5, 10),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(word_dim=word_dim, seed=seed)
        problems = [f"scales: {scale} is wider than word_dim={word_dim}" for scale in scales if scale > word_dim]
        if len(set(scales)) < len(scales):
            problems.append(f"scales: {list(scales)} has one twice; each is read once")
        if problems:
            raise ConfigError("text tower 'bag_of_words'", problems)
        self.scales = scales
        self.dropout = nn.Dropout(dropout)
        self.readers = nn.ModuleList(nn.Linear(-(-word_dim // scale), hidden) for scale in scales)
        self.fusion = nn.Linear(len(scales) * hidden, hidden)
        self.projection = nn.Linear(hidden, embedding_dim)

    def read(self, words: Tensor, lengths: Tensor) -> Tensor:
        """See `TextTower.read`."""
        is_word_BL = torch.arange(words.shape[1], device=words.device) < lengths[:, None]
        bag_BE = self.dropout((words * is_word_BL[:, :, None]).sum(dim=1))
        read = [functional.relu(reader(_pooled(bag_BE, scale))) for scale, reader in zip(self.scales, self.readers, strict=True)]
        return self.projection(self.dropout(functional.relu(self.fusion(torch.cat(read, dim=1)))))


def _pooled(bag_BE: Tensor, scale: int) -> Tensor:
    """(B, E) -> (B, ceil(E / scale)) means over windows side by side."""
    return functional.avg_pool1d(bag_BE[:, None], scale, ceil_mode=True)[:, 0]
