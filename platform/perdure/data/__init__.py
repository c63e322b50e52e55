"""Data: where pictures and their words come from, and how they become batches. A new source is one file and one line here."""

from perdure.catalog import Catalog
from perdure.data.dataset import Dataset
from perdure.data.image_folder import ImageFolder
from perdure.data.karpathy import Karpathy
from perdure.data.parquet import Parquet
from perdure.data.scenes import Scenes
from perdure.data.torchvision_dataset import TorchvisionDataset

__all__ = ["DATASETS", "Dataset"]

DATASETS: Catalog[Dataset] = Catalog(
    "dataset",
    {
        "scenes": Scenes,
        "parquet": Parquet,
        "image_folder": ImageFolder,
        "karpathy": Karpathy,
        "torchvision": TorchvisionDataset,
    },
)
