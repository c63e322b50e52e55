"""Ranking losses and miners by name, most of them from pytorch-metric-learning; for users: docs/how-to/ranking-losses.md."""

from torch import nn

from perdure.catalog import Catalog
from perdure.losses.metric import miners, pairs, proxies

__all__ = ["METRIC_LOSSES", "MINERS", "ON_RAW_ROWS", "PER_CLASS", "WITHOUT_MINER", "WITH_MEMORY"]

METRIC_LOSSES: Catalog[nn.Module] = Catalog(
    "metric loss",
    {
        "angular": pairs.angular,
        "circle": pairs.circle,
        "contrastive": pairs.contrastive,
        "fast_ap": pairs.fast_ap,
        "lifted_structure": pairs.lifted_structure,
        "margin": proxies.margin,
        "multi_similarity": pairs.multi_similarity,
        "n_pairs": pairs.n_pairs,
        "ntxent": pairs.ntxent,
        "proxy_anchor": proxies.proxy_anchor,
        "proxy_nca": proxies.proxy_nca,
        "quadruplet": pairs.quadruplet,
        "ranked_list": pairs.ranked_list,
        "soft_triple": proxies.soft_triple,
        "supcon": pairs.supcon,
        "triplet_margin": pairs.triplet_margin,
    },
)

MINERS: Catalog[nn.Module] = Catalog(
    "miner",
    {
        "angular": miners.angular,
        "batch_hard": miners.batch_hard,
        "distance_weighted": miners.distance_weighted,
        "easy_positive": miners.easy_positive,
        "hardest_share": miners.hardest_share,
        "multi_similarity": miners.multi_similarity,
        "pair_margin": miners.pair_margin,
        "triplet_margin": miners.triplet_margin,
    },
)

PER_CLASS = frozenset({"margin", "proxy_anchor", "proxy_nca", "soft_triple"})  # have parameters for each class of the task
ON_RAW_ROWS = frozenset({"n_pairs"})  # take the embeddings before normalisation; all others take unit rows
WITHOUT_MINER = frozenset({"quadruplet", "ranked_list"})  # choose their pairs by themselves
# Losses whose work grows with batch x memory. Over a memory, triplets and lists of all negatives of a pair grow with its square.
WITH_MEMORY = frozenset({"circle", "contrastive", "multi_similarity", "supcon"})
