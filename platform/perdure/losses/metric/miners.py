"""Miners: which pairs or triplets of a batch a loss looks at.

Each constructor makes a module (embeddings (B, D), labels (B,)) -> indices: three tensors (anchors, positives, negatives) or four
(anchors, positives, anchors, negatives). No gradient flows through a choice. S: cosine, d: Euclidean distance of unit rows.
"""

from typing import Literal

from torch import nn

from perdure.losses.metric.library import library
from perdure.losses.ranges import Degrees, NonNegative, Positive, PositiveFraction

__all__ = [
    "angular",
    "batch_hard",
    "distance_weighted",
    "easy_positive",
    "hardest_share",
    "multi_similarity",
    "pair_margin",
    "triplet_margin",
]


def batch_hard() -> nn.Module:
    """For each anchor its farthest positive and its nearest negative. Hermans, Beyer and Leibe, 2017, Eq. (5).

    From random weights, alone, it can pull all rows into one point; see `batch_triplet`.
    """
    return library().miners.BatchHardMiner()


def easy_positive(*, negatives: Literal["hard", "semi_hard"] = "semi_hard") -> nn.Module:
    """For each anchor its nearest positive, and its nearest negative or the nearest beyond that positive.

    Xuan, Stylianou and Pless, WACV 2020: classes may stay spread out.
    """
    return library().miners.BatchEasyHardMiner(pos_strategy="easy", neg_strategy=negatives.replace("_", ""))


def triplet_margin(*, margin: NonNegative = 0.2, kind: Literal["all", "hard", "semi_hard"] = "all") -> nn.Module:
    """All triplets with d_an - d_ap <= margin; hard: those with d_an <= d_ap; semi_hard: those with d_ap < d_an.

    Schroff, Kalenichenko and Philbin, CVPR 2015, section 3.2.
    """
    return library().miners.TripletMarginMiner(margin=margin, type_of_triplets=kind.replace("_", ""))


def pair_margin(*, positive_margin: NonNegative = 0.2, negative_margin: NonNegative = 0.8) -> nn.Module:
    """Positive pairs with d > positive_margin, negative pairs with d < negative_margin."""
    return library().miners.PairMarginMiner(pos_margin=positive_margin, neg_margin=negative_margin)


def multi_similarity(*, epsilon: NonNegative = 0.1) -> nn.Module:
    """Negatives with S_an + epsilon > min_p S_ap, positives with S_ap - epsilon < max_n S_an. Wang et al., CVPR 2019."""
    return library().miners.MultiSimilarityMiner(epsilon=epsilon)


def hardest_share(*, share: PositiveFraction = 0.5) -> nn.Module:
    """The share of all positive pairs that is farthest apart, and of all negative pairs that is nearest. Yuan et al., ICCV 2017."""
    return library().miners.HDCMiner(filter_percentage=share)


def angular(*, degrees: Degrees = 20.0) -> nn.Module:
    """Triplets whose angle at the negative is above `degrees`. Wang, Zhou, Wen, Liu and Lin, ICCV 2017."""
    return library().miners.AngularMiner(angle=degrees)


def distance_weighted(*, nearest: Positive = 0.5, farthest: Positive = 1.4) -> nn.Module:
    """A random triplet for each pair, the negative drawn evenly over distances. Wu, Manmatha, Smola and Krähenbühl, ICCV 2017.

    Args:
        nearest: lambda, smaller distances count as this one, so that the few nearest negatives are not drawn always.
        farthest: negatives beyond it are not drawn; a margin loss has no gradient there.
    """
    return library().miners.DistanceWeightedMiner(cutoff=nearest, nonzero_loss_cutoff=farthest)
