"""Reading and judging manifests: kustomize output, the operator's CRDs made strict, and the rules of its controller.

The CRDs (ray.io_rayclusters.yaml and so on, KubeRay 1.7) are not part of this repository: PERDURE_CRDS names their folder.
"""

import copy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel

Manifest = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "k8s" / "base"
OVERLAYS = ("dev", "prod")
CRDS = Path(os.environ.get("PERDURE_CRDS", ROOT.parent / "shared" / "crds"))
RAY_SPEC = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}  # where the cluster's spec lies
LONGEST_NAME = {"RayCluster": 53, "RayJob": 47, "RayService": 47}
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the CRDs are four megabytes

needs_crds = pytest.mark.skipif(not CRDS.is_dir(), reason=f"no CRDs in {CRDS}; set PERDURE_CRDS to a folder with KubeRay's")


def read(path: Path) -> list[Manifest]:
    """Every document of a YAML file."""
    return [document for document in yaml.load_all(path.read_text(), Loader=LOADER) if document is not None]


@cache
def _rendered(folder: Path) -> str:
    tool = [shutil.which("kustomize"), "build"] if shutil.which("kustomize") else [shutil.which("kubectl"), "kustomize"]
    if tool[0] is None:
        pytest.skip("neither kustomize nor kubectl is installed, so overlays cannot be rendered")
    said = subprocess.run([*map(str, tool), str(folder)], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    return said.stdout


def render(name: str) -> list[Manifest]:
    """The manifests of the base, read as they are, or of an overlay, rendered (skips where no tool is installed)."""
    if name == "base":
        listed = read(BASE / "kustomization.yaml")[0]["resources"]
        return [document for file in listed for document in read(BASE / file)]
    return list(yaml.load_all(_rendered(ROOT / "k8s" / "overlays" / name), Loader=LOADER))


def ray_kinds(documents: list[Manifest]) -> list[Manifest]:
    """Those that the operator reads."""
    return [document for document in documents if document["kind"] in RAY_SPEC]


def cluster_spec(document: Manifest) -> Manifest:
    """The RayCluster spec inside a RayCluster, RayJob or RayService."""
    spec = document["spec"]
    for key in RAY_SPEC[document["kind"]]:
        spec = spec[key]
    return spec


def groups(document: Manifest) -> list[Manifest]:
    """Head first, then the groups of workers."""
    spec = cluster_spec(document)
    return [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])]


def pod_templates(document: Manifest) -> list[Manifest]:
    """Every pod that a manifest leads to."""
    submitter = document["spec"].get("submitterPodTemplate")
    return [group["template"] for group in groups(document)] + ([submitter] if submitter else [])


@cache
def _validator(kind: str) -> Draft202012Validator:
    crd = read(CRDS / f"ray.io_{kind.lower()}s.yaml")[0]
    version = next(version for version in crd["spec"]["versions"] if version["name"] == "v1")
    return Draft202012Validator(_closed(version["schema"]["openAPIV3Schema"]))


def _closed(schema: Any) -> Any:
    """The schema with what the API server would prune made an error, and its dialect made JSON Schema's."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: _closed(value) for key, value in schema.items()}
    if "properties" in out and "additionalProperties" not in out and not schema.get("x-kubernetes-preserve-unknown-fields"):
        out["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
    return out


def schema_problems(document: Manifest) -> list[str]:
    """What the CRD says against a manifest; unknown keys count."""
    errors = _validator(document["kind"]).iter_errors(json.loads(json.dumps(document)))
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in errors]


def controller_problems(document: Manifest) -> list[str]:
    """What the operator's own validation, which no schema holds, says against a manifest."""
    found: list[str] = []
    kind, name, spec = document["kind"], document["metadata"]["name"], document["spec"]
    if len(name) > LONGEST_NAME[kind] or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        found.append(f"name '{name}': a DNS-1035 label of at most {LONGEST_NAME[kind]} characters is asked")
    cluster = cluster_spec(document)
    autoscaling = cluster.get("enableInTreeAutoscaling", False)
    if cluster.get("authOptions", {}).get("mode") == "token" and not cluster.get("rayVersion"):
        found.append("token authentication asks for rayVersion")
    if autoscaling != ("autoscalerOptions" in cluster):
        found.append("autoscalerOptions and enableInTreeAutoscaling go together")
    for group in groups(document):
        label = group.get("groupName", "head")
        parameters = group.get("rayStartParams", {})
        if not group["template"]["spec"].get("containers"):
            found.append(f"{label}: no container")
        if {"num-cpus", "num-gpus", "memory", "resources"} & set(parameters) and group.get("resources"):
            found.append(f"{label}: resources both in rayStartParams and in resources")
        if "labels" in parameters:
            found.append(f"{label}: labels belong in the group, not in rayStartParams")
        if autoscaling and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            found.append(f"{label}: the autoscaler asks for restartPolicy Never or none")
        if "groupName" in group and not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            found.append(f"{label}: minReplicas <= replicas <= maxReplicas does not hold")
    if kind == "RayJob":
        if not spec.get("entrypoint", "").strip():
            found.append("a RayJob without an entrypoint")
        if spec.get("ttlSecondsAfterFinished", 0) > 0 and not spec.get("shutdownAfterJobFinishes"):
            found.append("ttlSecondsAfterFinished asks for shutdownAfterJobFinishes")
        if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
            found.append("suspend asks for shutdownAfterJobFinishes")
        if "deletionStrategy" in spec and spec.get("shutdownAfterJobFinishes"):
            found.append("deletionStrategy and shutdownAfterJobFinishes exclude each other")
        if spec.get("submissionMode") == "SidecarMode" and {"submitterPodTemplate", "submitterConfig"} & set(spec):
            found.append("SidecarMode takes no submitter settings")
        if spec.get("submissionMode") == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
            found.append("InteractiveMode takes no backoffLimit")
        if min(spec.get("activeDeadlineSeconds", 1), spec.get("backoffLimit", 0) + 1) <= 0:
            found.append("activeDeadlineSeconds must be positive and backoffLimit not negative")
    if kind == "RayService":
        upgrade = spec.get("upgradeStrategy", {}).get("type", "NewCluster")
        if upgrade not in {"None", "NewCluster", "NewClusterWithIncrementalUpgrade"}:
            found.append(f"upgradeStrategy.type '{upgrade}' is unknown")
        if upgrade == "NewClusterWithIncrementalUpgrade" and not autoscaling:
            found.append("an incremental upgrade asks for the autoscaler")
        if cluster["headGroupSpec"].get("headService", {}).get("metadata", {}).get("name"):
            found.append("a RayService names the head's Service itself")
    return found


def unknown_keys(raw: Any, model: Any, at: str = "") -> Iterator[str]:
    """Keys that a pydantic model would ignore without a word, at any depth."""
    models = [part for part in (model, *_inside(model)) if isinstance(part, type) and issubclass(part, BaseModel)]
    if isinstance(raw, list):
        for number, part in enumerate(raw):
            yield from unknown_keys(part, model, f"{at}[{number}]")
    elif isinstance(raw, dict) and models:
        fields = {field.alias or name: field.annotation for part in models for name, field in part.model_fields.items()}
        for key, value in raw.items():
            where = f"{at}.{key}" if at else str(key)
            if key not in fields:
                yield f"{where}: unknown"
            else:
                yield from unknown_keys(value, fields[key], where)


def _inside(annotation: Any) -> Iterator[Any]:
    """The types named in a generic or a union, at any depth."""
    for part in get_args(annotation):
        yield part
        yield from _inside(part)


def changed(document: Manifest, path: str, value: Any) -> Manifest:
    """A copy with one place, a/b/0/c, set to something else; None removes it."""
    out = copy.deepcopy(document)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    place: Any = out
    for part in parents:
        place = place[part] if isinstance(part, int) else place.setdefault(part, {})
    if value is None:
        del place[last]
    else:
        place[last] = value
    return out
