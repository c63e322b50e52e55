"""Data: where pictures and their words come from, and how they become batches. A new source is one file and one line in `sources`."""

from perdure.catalog import Catalog
from perdure.data.dataset import Dataset
from perdure.data.modalities import Modalities
from perdure.data.sequence import DatasetSequence
from perdure.data.sources import SOURCES

__all__ = ["DATASETS", "Dataset"]

DATASETS: Catalog[Dataset] = Catalog("dataset", {**SOURCES, "sequence": DatasetSequence, "modalities": Modalities})
