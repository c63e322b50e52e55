"""Every catalog of the house: its parts have a schema, and what is misspelt gets a suggestion."""

from typing import Any

import pytest

from perdure.catalog import Catalog
from perdure.data import DATASETS
from perdure.encoders import ENCODERS, POOLINGS, TEXT_TOWERS
from perdure.errors import ConfigError
from perdure.index import PARTITIONS
from perdure.losses.metric import METRIC_LOSSES, MINERS
from perdure.strategies import STRATEGIES
from perdure.stream import STREAMS

CATALOGS: dict[str, tuple[Catalog[Any], set[str]]] = {
    "datasets": (DATASETS, {"scenes", "parquet", "image_folder", "karpathy", "torchvision", "sequence", "modalities"}),
    "streams": (STREAMS, {"class_incremental", "by_group", "dataset_sequence", "cross_modal", "modality_sequence"}),
    "encoders": (ENCODERS, {"small_resnet", "torchvision"}),
    "text towers": (TEXT_TOWERS, {"bilstm", "bag_of_words"}),
    "poolings": (POOLINGS, {"avg", "mac", "spoc", "gem", "crow", "rmac"}),
    "strategies": (
        STRATEGIES,
        {"fine_tune", "joint", "feature_extraction", "lwf", "l1", "l2", "mmd", "correlation", "correlation_all_teachers"}
        | {"dual", "ewc", "mas", "alasso", "nce_ewc", "adversarial_alignment", "domain_uncertainty_hashing", "meta_sequential"},
    ),
    "metric losses": (METRIC_LOSSES, {"contrastive", "triplet_margin", "quadruplet", "n_pairs", "proxy_nca", "proxy_anchor", "angular"}),
    "miners": (MINERS, {"batch_hard", "triplet_margin", "multi_similarity", "distance_weighted"}),
    "partitions": (PARTITIONS, {"flat", "hnsw", "binary", "ivfpq"}),
}
PARTS = [(kind, name) for kind, (catalog, _) in CATALOGS.items() for name in catalog]


@pytest.mark.parametrize("kind", CATALOGS)
def test_the_catalog_holds_what_the_design_promises(kind: str) -> None:
    catalog, promised = CATALOGS[kind]
    assert promised <= set(catalog)


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_every_part_has_a_schema_whose_defaults_are_valid(kind: str, name: str) -> None:
    catalog, _ = CATALOGS[kind]
    fields = catalog.schema(name).model_fields
    defaults = {option: field.default for option, field in fields.items() if not field.is_required()}
    required = {f"{option}: this option is required" for option, field in fields.items() if field.is_required()}
    assert set(catalog.problems(name, defaults)) == required


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_a_misspelt_option_is_refused_with_the_nearest_one(kind: str, name: str) -> None:
    catalog, _ = CATALOGS[kind]
    for option in catalog.schema(name).model_fields:
        if len(option) > 3:
            misspelt = option[:-2] + option[-1] + option[-2] if option[-1] != option[-2] else option + "s"
            said = [problem for problem in catalog.problems(name, {misspelt: 1}, at="part") if problem.startswith(f"part.{misspelt}:")]
            assert said and "no such option. Did you mean '" in said[0], said


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_a_misspelt_name_is_refused_with_the_nearest_one(kind: str, name: str) -> None:
    catalog, _ = CATALOGS[kind]
    with pytest.raises(ConfigError, match=f"Did you mean '{name}'"):
        catalog[name + "s"]
    assert catalog.problems(name + "s", {}, at="here") == [f"here.name: {catalog.unknown(name + 's')}"]


class Kettle:
    """A part for the tests below: the pipeline supplies `water`, a config may say the rest."""

    def __init__(self, water: str, *, litres: float, lid: bool = True) -> None:
        self.said = (water, litres, lid)


KETTLES: Catalog[Kettle] = Catalog("kettle", {"plain": Kettle})


def test_what_the_pipeline_supplies_is_no_option() -> None:
    assert set(KETTLES.schema("plain").model_fields) == {"litres", "lid"}
    assert KETTLES.build("plain", {"litres": 2}, "fresh").said == ("fresh", 2.0, True)


def test_every_wrong_option_of_a_part_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        KETTLES.build("plain", {"lids": False, "water": "salt"}, "fresh")
    assert caught.value.problems == [
        "litres: this option is required",
        "lids: no such option. Did you mean 'lid'?",
        "water: no such option.",
    ]


def test_text_from_a_config_becomes_the_type_that_the_constructor_asks() -> None:
    assert KETTLES.resolve("plain", {"litres": "1e-1"}) == {"litres": 0.1, "lid": True}
    with pytest.raises(ConfigError, match=r"kettle 'plain': 1 problem\n  litres: .*got 'much'"):
        KETTLES.resolve("plain", {"litres": "much"})
