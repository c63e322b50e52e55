"""What a configuration asks for, before any of it is built: names and options of parts, and parts that do not go together.

A rule is a function that tells what is wrong, a line each, and what to do about it.
"""

from collections.abc import Callable, Iterator
from typing import Any

from perdure.config import RunConfig, parse
from perdure.data import DATASETS
from perdure.encoders import ENCODERS
from perdure.errors import ConfigError
from perdure.strategies import STRATEGIES
from perdure.stream import STREAMS

__all__ = ["check", "resolved"]


def check(config: RunConfig) -> list[str]:
    """What is wrong with the parts of a config, a line each; empty when it can be built."""
    parts = (
        ("stream.dataset", DATASETS, config.stream.dataset),
        ("stream.kind", STREAMS, config.stream.kind),
        ("encoder", ENCODERS, config.encoder),
        ("strategy", STRATEGIES, config.strategy),
    )
    problems = [problem for at, catalog, part in parts for problem in catalog.problems(part.name, part.options, at)]
    return problems + [problem for rule in _RULES for problem in rule(config)]


def resolved(config: RunConfig) -> RunConfig:
    """The same run with every option of every part written out.

    Raises:
        ConfigError: unknown parts or options, or parts that do not go together, all at once.
    """
    problems = check(config)
    if problems:
        raise ConfigError(f"run '{config.name}'", problems)
    plain = config.plain()
    for holder, key, catalog in (
        (plain["stream"], "dataset", DATASETS),
        (plain["stream"], "kind", STREAMS),
        (plain, "encoder", ENCODERS),
        (plain, "strategy", STRATEGIES),
    ):
        name = holder[key].pop("name")
        holder[key] = {"name": name, **catalog.plain(name, holder[key])}
    return parse(plain, source=f"run '{config.name}'")


def _whitening_moves_everything(config: RunConfig) -> Iterator[str]:
    if _of_encoder(config, "whitening") is None:
        return
    if config.index.policy == "keep":
        yield (
            "index.policy=keep: encoder.whitening is fitted anew after each task, so a new query cannot be compared with old vectors; "
            "choose reindex or versioned, or encoder.whitening=null"
        )
    if config.strategy.name == "feature_extraction":
        yield (
            "strategy=feature_extraction: encoder.whitening is fitted anew after each task, so every embedding would move although the "
            "towers stay; choose encoder.whitening=null, or another strategy"
        )


def _pairs_need_words(config: RunConfig) -> Iterator[str]:
    text = _of_encoder(config, "text")
    if config.stream.kind.name == "cross_modal" and (text.get("name") if isinstance(text, dict) else text) == "none":
        yield "encoder.text=none: stream.kind=cross_modal learns pictures with captions; choose a text tower, or another kind"


def _bits_come_in_bytes(config: RunConfig) -> Iterator[str]:
    bits = _of_encoder(config, "hash_bits") or (_of_encoder(config, "whitening") or {}).get("dim") or _of_encoder(config, "embedding_dim")
    if config.index.kind == "binary" and isinstance(bits, int) and bits % 8:
        yield f"index.kind=binary: bits are kept in bytes, so an embedding of {bits} does not fit; choose a multiple of 8"


def _codes_divide_the_embedding(config: RunConfig) -> Iterator[str]:
    size = _of_encoder(config, "hash_bits") or (_of_encoder(config, "whitening") or {}).get("dim") or _of_encoder(config, "embedding_dim")
    code = config.index.pq_bytes
    if config.index.kind == "ivfpq" and code and isinstance(size, int) and size % code:
        yield f"index.pq_bytes={code}: each byte stands for as many numbers of an embedding of {size}; choose a divisor of it, or 0"


def _codes_are_learned_by_hashing(config: RunConfig) -> Iterator[str]:
    hashes, has_heads = config.strategy.name == "domain_uncertainty_hashing", _of_encoder(config, "hash_bits") is not None
    if hashes and not has_heads:
        yield "strategy=domain_uncertainty_hashing: it learns codes, but the encoder makes none; set encoder.hash_bits, such as 32"
    if has_heads and not hashes:
        yield (
            f"encoder.hash_bits: strategy={config.strategy.name} does not train the heads that make codes; choose "
            "strategy=domain_uncertainty_hashing, or encoder.hash_bits=null (index.kind=binary takes the signs of any embedding)"
        )


def _made_up_pictures_are_no_words(config: RunConfig) -> Iterator[str]:
    dataset = config.stream.dataset
    if config.strategy.name == "dual" and dataset.name == "modalities" and "text" in dataset.options.get("modalities", ["text"]):
        yield (
            "strategy=dual: it makes up pictures, and its second teacher sees pictures only, but some items are words alone; choose "
            "another strategy, or leave 'text' out of stream.dataset.modalities"
        )


def _modalities_meet_in_shared_layers(config: RunConfig) -> Iterator[str]:
    if config.strategy.name == "meta_sequential" and _of_encoder(config, "joint") is None:
        yield "strategy=meta_sequential: it needs layers that all modalities share; set encoder.joint={hidden: 256}"


def _of_encoder(config: RunConfig, option: str) -> Any:
    return config.encoder.options.get(option)


_RULES: tuple[Callable[[RunConfig], Iterator[str]], ...] = (
    _whitening_moves_everything,
    _pairs_need_words,
    _bits_come_in_bytes,
    _codes_divide_the_embedding,
    _codes_are_learned_by_hashing,
    _made_up_pictures_are_no_words,
    _modalities_meet_in_shared_layers,
)
