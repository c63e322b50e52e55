"""Every Serve config (serve/*.yaml and the RayService's) fits Ray's schema without an unknown key, and ServeArgs."""

from typing import Any

import pytest
import yaml
from manifests import OVERLAYS, ROOT, read, render, unknown_keys
from ray.serve.schema import ServeDeploySchema

FILES = sorted((ROOT / "serve").glob("*.yaml"))


def configs() -> dict[str, Any]:
    """name -> config, of the files and of the base's RayService."""
    out: dict[str, Any] = {f"serve/{path.name}": read(path)[0] for path in FILES}
    service = next(document for document in render("base") if document["kind"] == "RayService")
    return {**out, "RayService": yaml.safe_load(service["spec"]["serveConfigV2"])}


def test_both_topologies_have_a_config() -> None:
    assert {path.name for path in FILES} >= {"fused.yaml", "sharded.yaml"}
    assert {config["applications"][0]["args"]["topology"] for config in configs().values()} == {"fused", "sharded"}


@pytest.mark.parametrize("name", configs())
def test_it_fits_rays_schema_without_an_unknown_key(name: str) -> None:
    config = configs()[name]
    assert list(unknown_keys(config, ServeDeploySchema)) == []
    ServeDeploySchema.model_validate(config)


@pytest.mark.parametrize("name", configs())
def test_its_arguments_are_those_of_the_builder(name: str) -> None:
    from serve.schemas import ServeArgs

    for application in configs()[name]["applications"]:
        assert application["import_path"] == "serve.graph:build"
        ServeArgs.model_validate(application.get("args", {}))


@pytest.mark.parametrize("name", configs())
def test_the_deployments_it_changes_are_those_that_the_builder_makes(name: str) -> None:
    from serve.schemas import ServeArgs

    for application in configs()[name]["applications"]:
        args = ServeArgs.model_validate(application.get("args", {}))
        shards = {f"Shard-{number}" for number in range(args.shards)}
        made = {"Gateway"} if args.topology == "fused" else {"Gateway", "Encoder", *shards}
        changed = {deployment["name"]: deployment for deployment in application.get("deployments", [])}
        assert set(changed) <= made


@pytest.mark.parametrize("name", configs())
def test_the_address_that_the_gateway_believes_in_is_the_one_that_serve_listens_on(name: str) -> None:
    from serve.schemas import ServeArgs

    config = configs()[name]
    for application in config["applications"]:
        args = ServeArgs.model_validate(application.get("args", {}))
        assert args.host == config["http_options"]["host"]


@pytest.mark.parametrize("name", configs())
def test_every_proxy_asks_another_gateway_when_one_dies(name: str) -> None:
    from serve.proxy import ENVIRONMENT

    assert configs()[name]["controller_options"] == {"runtime_env": {"env_vars": ENVIRONMENT}}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_serve_what_the_base_serves(overlay: str) -> None:
    service = next(document for document in render(overlay) if document["kind"] == "RayService")
    assert yaml.safe_load(service["spec"]["serveConfigV2"]) == configs()["RayService"]


def test_unknown_keys_are_found_at_any_depth() -> None:
    config = {"aplications": [], "http_options": {"prot": 8000}, "applications": [{"name": "a", "deployments": [{"nam": "G"}]}]}
    assert sorted(unknown_keys(config, ServeDeploySchema)) == [
        "aplications: unknown",
        "applications[0].deployments[0].nam: unknown",
        "http_options.prot: unknown",
    ]
