"""Correlation distillation: who is similar to whom stays as the teacher saw it.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 6, Eq. (6.3) to (6.5), without feature estimation.
"""

from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.losses import Diagonal, cross_modal_gram_kl, gram_kl, unit_rows
from perdure.records import Embedded
from perdure.strategies.distiller import DEFAULT_SHARE, Distiller, Share
from perdure.strategies.ranking import DEFAULT_RANKING, PositiveFloat, Ranking, Weight
from perdure.strategies.teacher import FrozenTeacher, taught_pairs

__all__ = ["CorrelationDistillation"]


class CorrelationDistillation(Distiller):
    """L = ranking terms + weight * KL between the rows of the teacher's and the student's Gram matrix (6.3).

    Where the batch has text, the mean over the image-image, text-text, image-text and text-image matrices. What is held are
    neighbourhoods, not coordinates: the embedding space may turn as a whole, so re-embed the gallery or query it by the encoder
    that made it.

    Deviations: a classifier term in the ranking (weight 0 gives the thesis's objective). A temperature, see `gram_kl`; the weight
    belongs to it (the thesis: 10 at 1; for small changes weight / temperature^2 is what counts). At 0.1 a row is about its nearest
    neighbours, which among new classes are the ones to be told apart: the same protection cost more of the new task than at 0.5.
    The pull of the distilled term on the embeddings is at most `max_share` of that of the ranking terms (None: no bound, as in the
    thesis), because the weight that protects one stream freezes another, see `share_factor`. Figures: docs/reproductions.md.
    """

    name = "correlation"

    def __init__(
        self,
        *,
        weight: Weight = 37.0,
        temperature: PositiveFloat = 0.5,
        max_share: Share | None = DEFAULT_SHARE,
        diagonal: Diagonal = "drop",
        ranking: Ranking = DEFAULT_RANKING,
    ) -> None:
        super().__init__(max_share=max_share, ranking=ranking)
        self._weight = weight
        self._temperature = temperature
        self._diagonal: Diagonal = diagonal

    def distilled(self, encoder: Encoder, teacher: FrozenTeacher, batch: Embedded) -> dict[str, Tensor]:
        """`correlation`."""
        return {"correlation": self._weight * self._divergence(batch)}

    def _divergence(self, batch: Embedded) -> Tensor:
        units = [(unit_rows(teacher), unit_rows(student)) for teacher, student in taught_pairs(batch)]
        if len(units) == 1:
            return gram_kl(*units[0], temperature=self._temperature, diagonal=self._diagonal)
        (teacher_image, student_image), (teacher_text, student_text) = units
        return cross_modal_gram_kl(
            teacher_image, teacher_text, student_image, student_text, temperature=self._temperature, diagonal=self._diagonal
        )
