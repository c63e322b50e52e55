"""Losses: one equation family per file, tensors in, scalar out, torch only; in `metric`, those that a library brings."""

from perdure.losses.batch_norm_statistics import batch_norm_distance, channel_statistics
from perdure.losses.classification import cross_entropy_over, softened_cross_entropy
from perdure.losses.cluster import cluster_margin
from perdure.losses.displacement import l1_distance, l2_distance
from perdure.losses.gram import Diagonal, cross_modal_gram_kl, gram_kl
from perdure.losses.hashing import binary_codes, multi_label_cross_entropy, multi_level_similarity, pair_likelihood, quantisation
from perdure.losses.influence import influence_loss
from perdure.losses.mmd import BANDWIDTHS, mmd
from perdure.losses.modality import modality_cross_entropy, negative_entropy, reverse_gradient
from perdure.losses.nce import info_nce
from perdure.losses.pairs import PairMining, bidirectional_triplet
from perdure.losses.projection import projected, projected_logits, projection_kl, symmetric_posterior_kl
from perdure.losses.quadratic import asymmetric_surrogate, quadratic_penalty
from perdure.losses.quadruplet import batch_quadruplet
from perdure.losses.share import share_factor
from perdure.losses.triplet import Mining, batch_triplet
from perdure.losses.unit import inner_products, unit_rows

__all__ = [
    "BANDWIDTHS",
    "Diagonal",
    "Mining",
    "PairMining",
    "asymmetric_surrogate",
    "batch_norm_distance",
    "batch_quadruplet",
    "batch_triplet",
    "bidirectional_triplet",
    "binary_codes",
    "channel_statistics",
    "cluster_margin",
    "cross_entropy_over",
    "cross_modal_gram_kl",
    "gram_kl",
    "influence_loss",
    "info_nce",
    "inner_products",
    "l1_distance",
    "l2_distance",
    "mmd",
    "modality_cross_entropy",
    "multi_label_cross_entropy",
    "multi_level_similarity",
    "negative_entropy",
    "pair_likelihood",
    "projected",
    "projected_logits",
    "projection_kl",
    "quadratic_penalty",
    "quantisation",
    "reverse_gradient",
    "share_factor",
    "softened_cross_entropy",
    "symmetric_posterior_kl",
    "unit_rows",
]
