"""The encoder: an image tower, a text tower where there are captions, and a growing classifier, in one joint space.

Letters: B batch, D embedding, L words of a caption.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from perdure.encoders.classifier import GrowingClassifier
from perdure.encoders.hashing import HashHeads
from perdure.encoders.image_tower import ImageTower
from perdure.encoders.text_tower import TextTower
from perdure.encoders.vocabulary import Vocabulary
from perdure.encoders.whitening import Whitening
from perdure.errors import BadQuery

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """Pictures and texts to vectors of one space.

    What is trained is `forward`. What is stored and compared comes from `embed_images` and `embed_texts`, behind the `whitening` where
    one was fitted to this version; it is None otherwise, and while the encoder is trained. With `hashing` it is codes, before their
    signs are taken.

    Args:
        image: pictures (B, 3, H, W) in [0, 1] -> (B, D).
        text: word ids (B, L) -> (B, D); None where the data has no captions, and then there is no vocabulary either.
        classifier: (B, D) -> logits of the classes seen so far.
        hashing: (B, D) -> codes of either modality; None = the embeddings themselves are stored and compared.
        embedding_dim: D of the joint space, as it is trained: `joint_dim`.
        image_size: height and width that pictures are brought to before they come here.
        name: of the entry in `ENCODERS` that makes such an encoder.
        options: of that entry, as plain data.
        seed: that the weights were drawn with.
        joint: layers behind both towers, (B, H) -> (B, D), and then the towers give H features; None: the towers give embeddings.
    """

    def __init__(
        self,
        image: ImageTower,
        text: TextTower | None,
        classifier: GrowingClassifier,
        hashing: HashHeads | None = None,
        *,
        embedding_dim: int,
        image_size: int,
        name: str,
        options: Mapping[str, Any],
        seed: int,
        joint: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.joint = joint
        self.classifier = classifier
        self.hashing = hashing
        self.whitening: Whitening | None = None
        self.joint_dim = embedding_dim
        self.image_size = image_size
        self.vocabulary = Vocabulary() if text is not None else None
        self.name = name
        self.options = dict(options)
        self.seed = seed
        self._batch_norm_frozen = False
        self._towers_frozen = False

    def forward(self, images: Tensor | None, tokens: Tensor | None = None, is_text: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Embeddings before normalisation.

        Args:
            images: (B, 3, H, W) float in [0, 1]; the image tower subtracts its own mean.
            tokens: (B, L) int64 word ids of one caption each, 0 = padding, or None.
            is_text: (B,) bool where each of B items is of one modality alone: `images` has those that are pictures, `tokens` those that
                are words, in their order; either may be None.
        Returns:
            (B, D) float32 of the images, and (B, D) float32 of the captions; None without captions or without a text tower. With
            `is_text`, (B, D) of the items, and None.
        Raises:
            ValueError: neither images nor words.
        """
        return self.joined(*self.features(images, tokens, is_text))

    def features(self, images: Tensor | None, tokens: Tensor | None = None, is_text: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What the towers make of a batch, as in `forward`: (B, H) before the joint trunk; the embeddings where there is none."""
        seen = None if images is None else self.image(images)
        read = None if self.text is None or tokens is None else self.text(tokens)
        if is_text is None:
            if seen is None:
                raise ValueError("an encoder was called without images; words alone are told by is_text")
            return seen, read
        parts = [part for part in (seen, read) if part is not None]
        if sum(map(len, parts)) != len(is_text):
            raise ValueError(
                f"an encoder was called with {sum(map(len, parts))} pictures and texts that it can embed, for {len(is_text)} items"
            )
        num_pictures = 0 if seen is None else len(seen)
        place_B = torch.where(is_text, num_pictures + is_text.cumsum(0) - 1, (~is_text).cumsum(0) - 1)
        return torch.cat(parts)[place_B], None

    def joined(self, features: Tensor, text_features: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What `features` gave -> embeddings before normalisation."""
        if self.joint is None:
            return features, text_features
        return self.joint(features), None if text_features is None else self.joint(text_features)

    @property
    def image_path(self) -> nn.Module:
        """Pictures -> (B, D) before normalisation, as a module of its own."""
        return self.image if self.joint is None else nn.Sequential(self.image, self.joint)

    @property
    def embedding_dim(self) -> int:
        """Of what `embed_images` and `embed_texts` give: the joint space's, or fewer where a whitening keeps fewer, or bits."""
        if self.hashing is not None:
            return self.hashing.bits
        return self.joint_dim if self.whitening is None else self.whitening.dim

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float in [0, 1] -> (B, embedding_dim) float32 rows of unit length, in evaluation mode and without gradient."""
        with _Evaluating(self), torch.no_grad():
            return self._finished(self.image_path(images.to(self.device)), "image")

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """B texts -> (B, embedding_dim) float32 rows of unit length, in evaluation mode and without gradient.

        Raises:
            BadQuery: this encoder has no text tower.
        """
        if self.text is None or self.vocabulary is None:
            raise BadQuery("this encoder has no text tower: it was learned from pictures without captions. Search by image or by item id.")
        tokens = self.vocabulary.encode(texts).to(self.device)
        with _Evaluating(self), torch.no_grad():
            return self._finished(self.joined(self.text(tokens), None)[0], "text")

    def _finished(self, embeddings: Tensor, modality: Literal["image", "text"]) -> Tensor:
        """(B, D) before normalisation -> (B, embedding_dim) unit rows."""
        if self.hashing is not None:
            return functional.normalize(self.hashing(embeddings, modality), dim=1)
        rows = functional.normalize(embeddings, dim=1)
        return rows if self.whitening is None else self.whitening(rows)

    def grow(self, *, num_classes: int, captions: Iterable[str] = ()) -> None:
        """Make room for a task: classifier rows for its classes, vocabulary and word rows for its captions.

        Old ids and rows stay as they are. Parameters are replaced: create the optimiser afterwards.

        Raises:
            ValueError: fewer classes than there are.
        """
        self.classifier.grow(num_classes)
        if self.text is not None and self.vocabulary is not None:
            self.vocabulary.grow(captions)
            self.text.grow(len(self.vocabulary))

    def describe(self) -> dict[str, Any]:
        """Plain data from which `load_encoder` makes an encoder that takes this one's weights."""
        return {
            "name": self.name,
            "options": self.options,
            "seed": self.seed,
            "num_classes": self.classifier.num_classes,
            "vocabulary": None if self.vocabulary is None else list(self.vocabulary.words),
            "whitening": None if self.whitening is None else {"dim": self.whitening.dim},
        }

    @property
    def stores_what_it_trains(self) -> bool:
        """Whether `embed_images` and `embed_texts` give `forward`'s embeddings themselves, but for their length."""
        return self.whitening is None and self.hashing is None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.image.mean.device

    @property
    def has_batch_norm(self) -> bool:
        """Whether any layer keeps running statistics of the data."""
        return any(isinstance(module, _BatchNorm) for module in self.modules())

    @property
    def batch_norm_frozen(self) -> bool:
        """Whether BatchNorm layers stay on their running statistics while training."""
        return self._batch_norm_frozen

    def set_batch_norm_frozen(self, frozen: bool) -> None:
        """Keep BatchNorm layers on their running statistics, also while training; or stop keeping them there."""
        self._batch_norm_frozen = frozen
        self.train(self.training)

    def set_towers_frozen(self, frozen: bool) -> None:
        """Keep the encoder but for its classifier as it is, also while training: no gradient, no statistics that move; or stop."""
        self._towers_frozen = frozen
        for tower in self._towers():
            tower.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Switch to training (or evaluation) mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        if self._towers_frozen:
            for tower in self._towers():
                tower.eval()
        if self._batch_norm_frozen:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _towers(self) -> list[nn.Module]:
        return [tower for tower in (self.image, self.text, self.joint, self.hashing) if tower is not None]


class _Evaluating:
    """Evaluation mode for a while; a replica that serves is in it already, and then nothing is switched under other threads."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._was_training = encoder.training

    def __enter__(self) -> None:
        if self._was_training:
            self._encoder.eval()

    def __exit__(self, *_: object) -> None:
        if self._was_training:
            self._encoder.train()
