"""Encoders: pictures and texts to vectors of one joint space.

`ENCODERS` names the image towers that an encoder can be built on, `TEXT_TOWERS` the text towers beside them, `POOLINGS` what makes one
vector of the image tower's last map.
"""

from perdure.encoders.classifier import GrowingClassifier
from perdure.encoders.encoder import Encoder
from perdure.encoders.parts import ENCODERS, POOLINGS, TEXT_TOWERS, build_encoder, small_resnet
from perdure.encoders.storage import load_encoder, save_encoder
from perdure.encoders.text_tower import TextTower
from perdure.encoders.vocabulary import PADDING, UNKNOWN, Vocabulary, split_words
from perdure.encoders.whitening import Whitening, WhiteningOptions, fit_whitening

__all__ = [
    "ENCODERS",
    "PADDING",
    "POOLINGS",
    "TEXT_TOWERS",
    "UNKNOWN",
    "Encoder",
    "GrowingClassifier",
    "TextTower",
    "Vocabulary",
    "Whitening",
    "WhiteningOptions",
    "build_encoder",
    "fit_whitening",
    "load_encoder",
    "save_encoder",
    "small_resnet",
    "split_words",
]
