"""The frozen teacher: the encoder of the task before, which says what it thinks of the new task's items."""

import copy
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from perdure.encoders.encoder import Encoder
from perdure.records import Batch, Embedded

__all__ = ["DEFAULT_TEACHING", "FrozenTeacher", "Mirrored", "Teaching", "expert_pairs", "taught_pairs"]

Mirrored = Literal[False, True, "auto"]


class Teaching(BaseModel):
    """How a teacher looks at the new task's items."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    adapts: bool = Field(
        default=False,
        description="its BatchNorm layers normalise by the batch, as the student's do, and not by what the old tasks left: Szatkowski et "
        "al., Adapt Your Teacher, WACV 2024 (who also let the statistics follow, which nothing reads). Without BatchNorm, or where the "
        "student's is frozen, nothing",
    )
    mirrored: Mirrored = Field(
        default=False,
        description="what it says of a picture is the mean over it and its mirror image; its forward pass costs twice as much. auto: where "
        "the student learns from mirror images, too (train.flip)",
    )


DEFAULT_TEACHING = Teaching()


class FrozenTeacher:
    """A copy of an encoder without gradient, in eval mode but for what `Teaching` says.

    Not an nn.Module on purpose: no student, strategy or wrapper can register it, so `train()`, `parameters()`, `state_dict()` and
    an optimiser never reach it.
    """

    def __init__(self, encoder: Encoder, teaching: Teaching = DEFAULT_TEACHING, *, flips: bool = False) -> None:
        self._encoder = copy.deepcopy(encoder).requires_grad_(False).eval()
        self._teaching = teaching
        self._flips = flips
        self._mirrored = flips if teaching.mirrored == "auto" else teaching.mirrored
        for parameter in self._encoder.parameters():
            parameter.grad = None
        if teaching.adapts and not encoder.batch_norm_frozen:
            for layer in self._encoder.modules():
                if isinstance(layer, _BatchNorm):
                    layer.train()
                    layer.momentum = 0.0  # what the old tasks left stays as it is
        self._placed: tuple[torch.device, bool] | None = None

    def like(self, encoder: Encoder) -> "FrozenTeacher":
        """Another encoder, which looks at items as this one does."""
        return FrozenTeacher(encoder, self._teaching, flips=self._flips)

    @property
    def encoder(self) -> Encoder:
        """The copy itself, for what looks into it."""
        return self._encoder

    @property
    def num_classes(self) -> int:
        """How many classes it knows."""
        return self._encoder.classifier.num_classes

    @torch.no_grad()
    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """Its embeddings of a batch, before normalisation; see `Strategy.observe`; and of the synthetic pictures in it.

        Words that came after the teacher's time are unknown words to its text tower.
        """
        self._follow(batch)
        image, text = self._encoder(*batch.inputs)
        if self._mirrored and batch.images is not None:
            _, *others = batch.inputs
            image = (image + self._encoder(batch.images.flip(-1), *others)[0]) / 2
        seen = {"teacher_image": image} if text is None else {"teacher_image": image, "teacher_text": text}
        if batch.synthetic is not None:
            seen["teacher_synthetic"] = self._encoder(batch.synthetic)[0]
        return seen

    @torch.no_grad()
    def logits(self, embeddings: Tensor) -> Tensor:
        """(B, D) its own embeddings before normalisation -> (B, n) its logits of the old classes."""
        return self._encoder.classifier(embeddings)

    def _follow(self, batch: Batch) -> None:
        """Go where the batch is: the loop places the student after `begin_task`, and a teacher in another layout is slow."""
        device = batch.labels.device
        channels_last = batch.images is not None and batch.images.is_contiguous(memory_format=torch.channels_last)
        if self._placed != (device, channels_last):
            self._encoder.to(device)
            if channels_last:
                self._encoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            self._placed = (device, channels_last)


def taught_pairs(batch: Embedded) -> list[tuple[Tensor, Tensor]]:
    """(teacher's, student's) embeddings of the pictures and, where the batch has text, of the captions; each (B, D), not normalised.

    Made-up pictures stand behind the others, so there may be more pictures than captions.

    Raises:
        ValueError: the teacher's embeddings are missing: what `observe` returned was not put into the batch.
    """
    asked = {
        "teacher_image": (batch.teacher_image, batch.image),
        "teacher_synthetic": (batch.teacher_synthetic, batch.synthetic),
        "teacher_text": (batch.teacher_text, batch.text),
    }
    taught: dict[str, tuple[Tensor, Tensor]] = {}
    for name, (said, own) in asked.items():
        if own is None:
            continue
        if said is None:
            raise ValueError(f"this strategy has a teacher, but the batch came without {name}; pass on what observe() returned")
        taught[name] = (said, own)
    pictures = [taught[name] for name in ("teacher_image", "teacher_synthetic") if name in taught]
    pairs = [(torch.cat([said for said, _ in pictures]), torch.cat([own for _, own in pictures]))]
    return [*pairs, taught["teacher_text"]] if "teacher_text" in taught else pairs


def expert_pairs(batch: Embedded) -> list[tuple[Tensor, Tensor]]:
    """(expert's, student's) embeddings of the pictures and, where the batch has text, of the captions; each (B, D), not normalised.

    Raises:
        ValueError: the expert's embeddings are missing: what `observe` returned was not put into the batch.
    """
    if batch.expert_image is None or (batch.text is not None and batch.expert_text is None):
        raise ValueError("this strategy has an expert, but the batch came without what it says; pass on what observe() returned")
    pictures = [(batch.expert_image, batch.image)]
    return pictures if batch.text is None or batch.expert_text is None else [*pictures, (batch.expert_text, batch.text)]
