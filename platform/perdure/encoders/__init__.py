"""Encoders: pictures and texts to vectors of one joint space.

`ENCODERS` names the image towers that an encoder can be built on, `TEXT_TOWERS` the text towers beside them.
"""

from perdure.encoders.classifier import GrowingClassifier
from perdure.encoders.encoder import Encoder
from perdure.encoders.parts import ENCODERS, TEXT_TOWERS, build_encoder, small_resnet
from perdure.encoders.storage import load_encoder, save_encoder
from perdure.encoders.text_tower import TextTower
from perdure.encoders.vocabulary import PADDING, UNKNOWN, Vocabulary, split_words

__all__ = [
    "ENCODERS",
    "PADDING",
    "TEXT_TOWERS",
    "UNKNOWN",
    "Encoder",
    "GrowingClassifier",
    "TextTower",
    "Vocabulary",
    "build_encoder",
    "load_encoder",
    "save_encoder",
    "small_resnet",
    "split_words",
]
