"""The frozen teacher: the encoder of the task before, which says what it thinks of the new task's items."""

import copy

import torch
from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.records import Batch, Embedded

__all__ = ["FrozenTeacher", "taught_pairs"]


class FrozenTeacher:
    """A copy of an encoder without gradient, always in eval mode.

    Not an nn.Module on purpose: no student, strategy or wrapper can register it, so `train()`, `parameters()`, `state_dict()` and
    an optimiser never reach it.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = copy.deepcopy(encoder).requires_grad_(False).eval()
        for parameter in self._encoder.parameters():
            parameter.grad = None
        self._placed: tuple[torch.device, bool] | None = None

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
