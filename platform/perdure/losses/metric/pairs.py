"""Losses over the pairs, triplets and ranked lists of a batch; none of them has parameters.

Each constructor makes a module (embeddings (B, D), labels (B,), indices) -> (); `indices` are what a miner chose, None = all. The rows
are of unit length, except for `n_pairs`, so the Euclidean distance d = |a - b| lies in 0..2 and its square, 2 (1 - cosine), in 0..4;
margins are in their units. a: anchor, p: another row of its class, n: a row of another class; S: cosine, d: distance; "mean" of
hinges max(0, .): over those above 0, so that the pull does not fade as fewer are left.
"""

from typing import Literal

from torch import Tensor, nn

from perdure.losses.metric.library import library
from perdure.losses.quadruplet import batch_quadruplet
from perdure.losses.ranges import Count, Degrees, Fraction, NonNegative, Positive, UpToFive

__all__ = [
    "Distance",
    "Quadruplet",
    "angular",
    "circle",
    "contrastive",
    "fast_ap",
    "lifted_structure",
    "multi_similarity",
    "n_pairs",
    "ntxent",
    "quadruplet",
    "ranked_list",
    "supcon",
    "triplet_margin",
]

Distance = Literal["euclidean", "squared"]


def contrastive(*, positive_margin: NonNegative = 0.0, negative_margin: NonNegative = 1.0, distance: Distance = "euclidean") -> nn.Module:
    """Siamese loss: mean max(0, d_ap - positive_margin) + mean max(0, negative_margin - d_an).

    Hadsell, Chopra and LeCun, CVPR 2006, Eq. (4), with a single margin; a positive_margin above 0 makes it the double-margin form.

    Deviations: the hinges are not squared; the two means are added, so their balance does not follow the number of pairs.
    """
    return library().losses.ContrastiveLoss(pos_margin=positive_margin, neg_margin=negative_margin, distance=_lp(distance))


def triplet_margin(*, margin: NonNegative = 0.2, swap: bool = False, smooth: bool = False, distance: Distance = "euclidean") -> nn.Module:
    """Triplets: mean max(0, margin + d_ap - d_an); `smooth`: mean log(1 + exp(margin + d_ap - d_an)).

    Schroff, Kalenichenko and Philbin, "FaceNet", CVPR 2015, section 3.1 (there with `distance: squared`). `swap`: d_pn instead of d_an
    where it is the smaller one (Balntas et al., BMVC 2016). Unlike `ranking.triplet` it takes any miner.
    """
    return library().losses.TripletMarginLoss(margin=margin, swap=swap, smooth_loss=smooth, distance=_lp(distance))


class Quadruplet(nn.Module):
    """`batch_quadruplet` as a module, because the library has none."""

    def __init__(self, margin: float, other_margin: float) -> None:
        super().__init__()
        self.margin = margin
        self.other_margin = other_margin

    def forward(self, embeddings: Tensor, labels: Tensor, indices: None = None) -> Tensor:
        """See `batch_quadruplet`; it takes every quadruplet, no miner's choice."""
        return batch_quadruplet(embeddings, labels, margin=self.margin, other_margin=self.other_margin)


def quadruplet(*, margin: NonNegative = 0.5, other_margin: NonNegative = 0.25) -> nn.Module:
    """Triplets, and pairs of one class against pairs of two other classes; see `batch_quadruplet`. Margins in units of a cosine."""
    return Quadruplet(margin, other_margin)


def n_pairs(*, norm_weight: NonNegative = 0.002) -> nn.Module:
    """N-pair: mean over classes i of log(1 + sum_{j != i} exp(a_i . p_j - a_i . p_i)) + norm_weight * mean |z|^2.

    Sohn, NeurIPS 2016, section 3.2. One pair (a_i, p_i) of each class of the batch: its first two rows, or the first that
    the miner chose. The rows are the raw embeddings, as in the paper: cosines are too close together for a softmax without temperature.
    """
    parts = library()
    return parts.losses.NPairsLoss(
        distance=parts.distances.DotProductSimilarity(normalize_embeddings=False),
        embedding_regularizer=parts.regularizers.LpRegularizer(p=2, power=2),
        embedding_reg_weight=norm_weight,
    )


def lifted_structure(*, margin: NonNegative = 1.0, distance: Distance = "euclidean") -> nn.Module:
    """Lifted structure: mean over all pairs (a, p) of 1/2 max(0, d_ap + log(sum_n exp(margin - d_an) + sum_n exp(margin - d_pn)))^2.

    Oh Song, Xiang, Jegelka and Savarese, CVPR 2016, Eq. (4).
    """
    return library().losses.LiftedStructureLoss(neg_margin=margin, distance=_lp(distance))


def ranked_list(
    *,
    margin: Positive = 0.4,
    boundary: Positive = 1.2,
    temperature: UpToFive = 5.0,
    positive_temperature: UpToFive = 0.0,
    negative_share: Fraction = 0.5,
) -> nn.Module:
    """Ranked list: positives within boundary - margin of the anchor, negatives beyond the boundary, near negatives weighing more.

    Wang, Hua, Kodirov, Hu, Garnier and Robertson, CVPR 2019, section 3: the mean over anchors of
    (1 - negative_share) * weighted mean (d_ap - (boundary - margin)) + negative_share * weighted mean (boundary - d_an) over the pairs
    that violate, with weights exp(temperature * violation). It chooses its pairs by itself and takes no miner.
    """
    return library().losses.RankedListLoss(margin=margin, alpha=boundary, Tn=temperature, Tp=positive_temperature, imbalance=negative_share)


def angular(*, degrees: Degrees = 40.0) -> nn.Module:
    """Angular: mean over pairs (a, p) of log(1 + sum_n exp(4 tan^2(degrees) (a + p) . n - 2 (1 + tan^2(degrees)) a . p)).

    Wang, Zhou, Wen, Liu and Lin, ICCV 2017: the angle at n of a triangle is bounded instead of a distance.
    """
    return library().losses.AngularLoss(alpha=degrees)


def multi_similarity(*, alpha: Positive = 2.0, beta: Positive = 50.0, base: Fraction = 0.5) -> nn.Module:
    """Multi-similarity: mean_a 1/alpha log(1 + sum_p exp(-alpha (S_ap - base))) + 1/beta log(1 + sum_n exp(beta (S_an - base))).

    Wang, Han, Huang, Dong and Scott, CVPR 2019; the paper mines with the miner of the same name.
    """
    return library().losses.MultiSimilarityLoss(alpha=alpha, beta=beta, base=base)


def circle(*, margin: Fraction = 0.4, scale: Positive = 80.0) -> nn.Module:
    """Circle: pairs far from where they should be weigh more, within one class and between classes alike.

        L = mean_a log(1 + sum_n exp(scale w_n (S_an - margin)) sum_p exp(-scale w_p (S_ap - 1 + margin)))
        w_n = max(0, S_an + margin),        w_p = max(0, 1 + margin - S_ap),        no gradient through either

    Sun et al., CVPR 2020; scale is its gamma.
    """
    return library().losses.CircleLoss(m=margin, gamma=scale)


def ntxent(*, temperature: Positive = 0.1) -> nn.Module:
    """NT-Xent (InfoNCE with labels): mean over pairs (a, p) of -log(exp(S_ap / tau) / (exp(S_ap / tau) + sum_n exp(S_an / tau))).

    Chen, Kornblith, Norouzi and Hinton, ICML 2020, Eq. (1).
    """
    return library().losses.NTXentLoss(temperature=temperature)


def supcon(*, temperature: Positive = 0.1) -> nn.Module:
    """Supervised contrastive: mean over anchors and their p of -log(exp(S_ap / tau) / sum of exp(S_ai / tau) over all other rows i).

    Khosla et al., NeurIPS 2020, Eq. (2).
    """
    return library().losses.SupConLoss(temperature=temperature)


def fast_ap(*, bins: Count = 10) -> nn.Module:
    """FastAP: 1 - the average precision of each row's ranking of the batch, made differentiable by a histogram of squared distances.

    Cakir, He, Xia, Kulis and Sclaroff, CVPR 2019. A miner only weighs the rows.
    """
    return library().losses.FastAPLoss(num_bins=bins)


def _lp(distance: Distance) -> nn.Module:
    return library().distances.LpDistance(p=2, power=2 if distance == "squared" else 1)
