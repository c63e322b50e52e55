"""The wiring: what the builder makes of its arguments, and the YAML files that `serve deploy` takes."""

import inspect
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from serve.graph import build
from serve.schemas import ServeArgs

ROOT = Path(__file__).parents[2]
YAMLS = sorted((ROOT / "serve").glob("*.yaml"))


def deployments(application: Application) -> dict[str, object]:
    """Every deployment of an application by name, its arguments' deployments included."""
    bound = application._bound_deployment
    found: dict[str, object] = {bound.name: bound}
    for argument in bound.init_args:
        for one in argument if isinstance(argument, list) else [argument]:
            if isinstance(one, Application):
                found |= deployments(one)
    return found


def test_the_builder_takes_typed_arguments() -> None:
    (parameter,) = inspect.signature(build).parameters.values()
    assert parameter.annotation is ServeArgs  # postponed annotations would leave a text here, and Serve would hand over a dict


def test_fused_is_one_deployment_and_sharded_a_graph(tmp_path: Path) -> None:
    fused = deployments(build(ServeArgs(registry=str(tmp_path))))
    sharded = deployments(build(ServeArgs(registry=str(tmp_path), topology="sharded", shards=3)))
    assert list(fused) == ["Gateway"]
    assert sorted(sharded) == ["Encoder", "Gateway", "Shard-0", "Shard-1", "Shard-2"]
    for deployment in [*fused.values(), *sharded.values()]:
        assert deployment._deployment_config.max_surge_percent == 100  # type: ignore[attr-defined]


def test_arguments_reach_the_deployments(tmp_path: Path) -> None:
    args = ServeArgs.model_validate(
        {"registry": str(tmp_path), "gateway": {"num_replicas": 3, "num_cpus": 0.5, "max_ongoing_requests": 7}, "request_timeout_s": 9}
    )
    gateway = deployments(build(args))["Gateway"]
    assert gateway.num_replicas == 3 and gateway.max_ongoing_requests == 7  # type: ignore[attr-defined]
    assert gateway.ray_actor_options["num_cpus"] == 0.5  # type: ignore[attr-defined]
    assert gateway._deployment_config.graceful_shutdown_timeout_s > 9  # type: ignore[attr-defined]


def test_a_misspelt_argument_is_refused() -> None:
    with pytest.raises(ValidationError, match="shard_count"):
        ServeArgs.model_validate({"shard_count": 3})


def test_the_environment_fills_in_what_is_not_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ServeArgs().resolved().registry == str(tmp_path / "registry")
    monkeypatch.setenv("PERDURE_REGISTRY", "elsewhere")
    monkeypatch.setenv("PERDURE_KEYS", "keys.txt")
    resolved = ServeArgs().resolved()
    assert resolved.registry == str(tmp_path / "elsewhere") and resolved.keys_file == str(tmp_path / "keys.txt")
    assert ServeArgs(registry="said").resolved().registry == str(tmp_path / "said")
    assert ServeArgs(registry="s3://bucket/registry").resolved().registry == "s3://bucket/registry"


def test_there_are_two_yaml_files() -> None:
    assert [path.name for path in YAMLS] == ["fused.yaml", "sharded.yaml"]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_a_yaml_is_what_serve_deploy_takes(path: Path) -> None:
    raw = yaml.safe_load(path.read_text())
    schema = ServeDeploySchema.model_validate(raw)
    assert set(raw) <= set(ServeDeploySchema.model_fields), "the schema ignores unknown keys, so they are looked for here"
    (application,) = schema.applications
    assert set(raw["applications"][0]) <= set(type(application).model_fields)
    assert application.import_path == "serve.graph:build"
    args = ServeArgs.model_validate(application.args)
    assert args.topology == path.stem and args.host == raw["http_options"]["host"]
