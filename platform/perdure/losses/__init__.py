"""Losses: one equation family per file, tensors in, scalar out, torch only."""

from perdure.losses.classification import cross_entropy_over, softened_cross_entropy
from perdure.losses.displacement import l2_distance
from perdure.losses.gram import Diagonal, cross_modal_gram_kl, gram_kl
from perdure.losses.pairs import PairMining, bidirectional_triplet
from perdure.losses.share import share_factor
from perdure.losses.triplet import Mining, batch_triplet
from perdure.losses.unit import inner_products, unit_rows

__all__ = [
    "Diagonal",
    "Mining",
    "PairMining",
    "batch_triplet",
    "bidirectional_triplet",
    "cross_entropy_over",
    "cross_modal_gram_kl",
    "gram_kl",
    "inner_products",
    "l2_distance",
    "share_factor",
    "softened_cross_entropy",
    "unit_rows",
]
