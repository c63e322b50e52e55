"""The sources of pictures by name: everything that `sequence` can put one after another."""

from perdure.catalog import Catalog
from perdure.data.cifar100_binary import CIFAR100Binary
from perdure.data.coco_captions import COCOCaptions
from perdure.data.cub200 import CUB200
from perdure.data.cuhk_pedes import CUHKPEDES
from perdure.data.dataset import Dataset
from perdure.data.flickr8k import Flickr8k
from perdure.data.flickr30k import Flickr30k
from perdure.data.image_folder import ImageFolder
from perdure.data.karpathy import Karpathy
from perdure.data.mirflickr25k import MIRFlickr25K
from perdure.data.nus_wide import NUSWIDE
from perdure.data.parquet import Parquet
from perdure.data.scenes import Scenes
from perdure.data.stanford_cars import StanfordCars
from perdure.data.stanford_dogs import StanfordDogs
from perdure.data.torchvision_dataset import TorchvisionDataset

__all__ = ["SOURCES"]

SOURCES: Catalog[Dataset] = Catalog(
    "dataset",
    {
        "scenes": Scenes,
        "parquet": Parquet,
        "image_folder": ImageFolder,
        "karpathy": Karpathy,
        "torchvision": TorchvisionDataset,
        "cub200": CUB200,
        "stanford_dogs": StanfordDogs,
        "stanford_cars": StanfordCars,
        "cifar100_binary": CIFAR100Binary,
        "flickr8k": Flickr8k,
        "flickr30k": Flickr30k,
        "coco_captions": COCOCaptions,
        "cuhk_pedes": CUHKPEDES,
        "mirflickr25k": MIRFlickr25K,
        "nus_wide": NUSWIDE,
    },
)
