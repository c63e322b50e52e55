"""k8s/: valid for the operator, safe by default, and in step with the rest of the repository. No cluster is needed."""

import re
import runpy
import shlex
from typing import Any

import pytest
import yaml
from manifests import (
    BASE,
    OVERLAYS,
    ROOT,
    Manifest,
    changed,
    cluster_spec,
    controller_problems,
    groups,
    needs_crds,
    pod_templates,
    ray_kinds,
    read,
    render,
    schema_problems,
)

from perdure import __version__
from perdure.config import WorkersConfig, load, parse
from perdure.tuning import load_sweep

VARIANTS = ("base", *OVERLAYS)
JOBS = ("train", "sweep", "backfill")


def by_kind(variant: str, kind: str) -> Manifest:
    return next(document for document in render(variant) if document["kind"] == kind)


def rayjob(variant: str, name: str) -> Manifest:
    return next(document for document in render(variant) if document["metadata"]["name"] == f"perdure-{name}")


def containers(variant: str) -> list[tuple[str, Manifest]]:
    """(manifest/container, container) of every pod."""
    return [
        (f"{document['kind']}/{container['name']}", container)
        for document in ray_kinds(render(variant))
        for template in pod_templates(document)
        for container in template["spec"]["containers"]
    ]


def test_the_base_lists_every_file_that_lies_in_it() -> None:
    listed = read(BASE / "kustomization.yaml")[0]["resources"]
    assert sorted(listed) == sorted(path.name for path in BASE.glob("*.yaml") if path.name != "kustomization.yaml")


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_holds_a_cluster_the_jobs_and_a_service(variant: str) -> None:
    names = {(document["kind"], document["metadata"]["name"]) for document in ray_kinds(render(variant))}
    jobs = {("RayJob", f"perdure-{name}") for name in JOBS}
    assert names == {("RayCluster", "perdure-workbench"), ("RayService", "perdure")} | jobs


@needs_crds
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_ray_manifest_fits_its_crd_without_a_key_too_many(variant: str) -> None:
    problems = {f"{document['kind']}: {problem}" for document in ray_kinds(render(variant)) for problem in schema_problems(document)}
    assert not problems


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_ray_manifest_passes_the_operators_own_rules(variant: str) -> None:
    problems = [f"{document['kind']}: {problem}" for document in ray_kinds(render(variant)) for problem in controller_problems(document)]
    assert not problems


@needs_crds
@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayCluster", "spec/headGroup", {}),
        ("RayCluster", "spec/headGroupSpec/template/spec/containers/0/imagePulPolicy", "Always"),
        ("RayCluster", "spec/headGroupSpec/rayStartParams/num-cpus", 0),
        ("RayCluster", "spec/authOptions/mode", "tokens"),
        ("RayCluster", "spec/workerGroupSpecs/0/groupName", None),
        ("RayJob", "spec/backoffLimit", "three"),
        ("RayService", "spec/serveConfig", "x"),
        ("RayService", "spec/rayClusterConfig/headGroupSpec/template/spec/containers/0/resources/limits/cpu", ["1"]),
    ],
)
def test_the_strict_schema_catches_mistakes(kind: str, path: str, value: Any) -> None:
    good = by_kind("base", kind)
    assert schema_problems(good) == []
    assert schema_problems(changed(good, path, value))


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayService", "metadata/name", "p" * 48),
        ("RayCluster", "metadata/name", "2fast"),
        ("RayCluster", "spec/rayVersion", None),
        ("RayCluster", "spec/enableInTreeAutoscaling", True),
        ("RayCluster", "spec/workerGroupSpecs/0/maxReplicas", 0),
        ("RayCluster", "spec/headGroupSpec/resources", {"CPU": "1"}),
        ("RayCluster", "spec/headGroupSpec/rayStartParams/labels", "a=b"),
        ("RayJob", "spec/entrypoint", " "),
        ("RayJob", "spec/shutdownAfterJobFinishes", False),
        ("RayJob", "spec/submissionMode", "SidecarMode"),
        ("RayService", "spec/upgradeStrategy/type", "NewClusterWithIncrementalUpgrade"),
    ],
)
def test_the_controller_rules_catch_mistakes(kind: str, path: str, value: Any) -> None:
    assert controller_problems(changed(by_kind("base", kind), path, value))


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_image_with_the_packages_version_is_used_everywhere(variant: str) -> None:
    images = {container["image"] for _, container in containers(variant)}
    assert len(images) == 1
    assert images.pop().endswith(f"perdure:{__version__}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_ray_version_is_the_locked_one(variant: str) -> None:
    locked = re.search(r"^ray==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked
    assert {cluster_spec(document)["rayVersion"] for document in ray_kinds(render(variant))} == {locked[1]}


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_pod_runs_as_root_or_may_become_it(variant: str) -> None:
    for document in ray_kinds(render(variant)):
        for template in pod_templates(document):
            pod = template["spec"]["securityContext"]
            assert pod["runAsNonRoot"] is True and pod["runAsUser"] > 0 and pod["seccompProfile"] == {"type": "RuntimeDefault"}
    for name, container in containers(variant):
        inside = container["securityContext"]
        assert inside["allowPrivilegeEscalation"] is False and inside["capabilities"] == {"drop": ["ALL"]}, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_container_can_write_its_root_and_each_has_a_place_for_temporary_files(variant: str) -> None:
    autoscalers = [cluster_spec(document).get("autoscalerOptions") for document in ray_kinds(render(variant))]
    for name, container in [*containers(variant), *(("autoscaler", options) for options in autoscalers if options)]:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
        assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"], name


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_heads_with_an_autoscaler_get_a_token_of_the_api_server(variant: str) -> None:
    for document in ray_kinds(render(variant)):
        head, *others = pod_templates(document)
        assert head["spec"]["automountServiceAccountToken"] is bool(cluster_spec(document).get("enableInTreeAutoscaling"))
        assert not any(other["spec"]["automountServiceAccountToken"] for other in others)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_container_says_what_it_needs_and_may_take(variant: str) -> None:
    for name, container in containers(variant):
        for bound in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(container["resources"][bound]), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_ray_container_has_probes(variant: str) -> None:
    for document in ray_kinds(render(variant)):
        for group in groups(document):
            container = group["template"]["spec"]["containers"][0]
            assert {"livenessProbe", "readinessProbe"} <= set(container)
    service = by_kind(variant, "RayService")
    probe = str(groups(service)[1]["template"]["spec"]["containers"][0]["readinessProbe"])
    assert "8000/-/healthz" in probe, "a node without a Serve proxy must not get searches"


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_scheduled_on_a_head(variant: str) -> None:
    for document in ray_kinds(render(variant)):
        assert groups(document)[0]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_volume_that_is_mounted_exists_and_every_claim_too(variant: str) -> None:
    claims = {document["metadata"]["name"] for document in render(variant) if document["kind"] == "PersistentVolumeClaim"}
    for document in ray_kinds(render(variant)):
        for template in pod_templates(document):
            volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
            mounted = {mount["name"] for container in template["spec"]["containers"] for mount in container.get("volumeMounts", [])}
            assert mounted == set(volumes)
            assert {
                volume["persistentVolumeClaim"]["claimName"] for volume in volumes.values() if "persistentVolumeClaim" in volume
            } <= claims


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_network_policy_covers_every_pod_and_opens_searches_only_on_those_that_serve(variant: str) -> None:
    policies = {document["metadata"]["name"]: document["spec"] for document in render(variant) if document["kind"] == "NetworkPolicy"}
    inside = policies["perdure-inside"]
    assert set(inside["policyTypes"]) == {"Ingress", "Egress"}
    search = policies["perdure-search"]["podSelector"]["matchLabels"].items()
    for document in ray_kinds(render(variant)):
        for template in pod_templates(document):
            labels = template["metadata"]["labels"].items()
            assert inside["podSelector"]["matchLabels"].items() <= labels
            assert (search <= labels) == (document["kind"] == "RayService")


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_jobs_entrypoint_is_a_command_that_this_repository_has_and_its_cluster_has_room_for(variant: str, name: str) -> None:
    job = rayjob(variant, name)
    python, script, *words = shlex.split(job["spec"]["entrypoint"])
    assert (python, script) == ("python", f"/app/jobs/{name}.py") and (ROOT / script.removeprefix("/app/")).is_file()
    asked = workers_asked_for(name, [word.removeprefix("/app/") for word in words])
    workers = groups(job)[1]
    cpus = workers["replicas"] * float(workers["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    needed = asked.fewest * asked.cpus + job["spec"]["entrypointNumCpus"]
    assert needed <= cpus, f"the job asks for {needed} CPUs and its cluster has {cpus}: it would wait for ever"


def workers_asked_for(name: str, words: list[str]) -> WorkersConfig:
    """What a job's own command line, config and overrides ask of Ray."""
    if name == "train":
        return load(ROOT / words[0], words[1:]).workers
    if name == "sweep":
        sweep = load_sweep(ROOT / words[0], words[1:])
        workers = sweep.trial({}, sweep.name).workers
        assert isinstance(workers.num, int)
        return workers.model_copy(update={"num": workers.num * sweep.concurrent})
    given = runpy.run_path(str(ROOT / "jobs/backfill.py"))["_parser"]().parse_args(words)
    return parse({}, [f"workers={given.workers}"]).workers


def test_a_suspended_job_has_to_give_its_cluster_back() -> None:
    stays = changed(rayjob("base", "sweep"), "spec/shutdownAfterJobFinishes", False)
    assert "suspend asks for shutdownAfterJobFinishes" in controller_problems(stays)


@pytest.mark.parametrize("variant", VARIANTS)
def test_applying_it_starts_no_sweep_and_moves_no_item(variant: str) -> None:
    assert {name: rayjob(variant, name)["spec"].get("suspend", False) for name in JOBS} == {"train": False, "sweep": True, "backfill": True}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_services_replicas_fit_its_workers_also_while_one_is_replaced(variant: str) -> None:
    service = by_kind(variant, "RayService")
    application = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]
    shares = {part: application[part]["num_replicas"] * application[part]["num_cpus"] for part in ("gateway", "encoder", "shard")}
    shares["shard"] *= application["shards"]
    workers = groups(service)[1]
    cpus = workers["replicas"] * float(workers["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert sum(shares.values()) + max(application[part]["num_cpus"] for part in shares) <= cpus


def test_dev_has_no_autoscaling_and_a_volume_that_one_node_can_offer() -> None:
    documents = render("dev")
    assert not any(cluster_spec(document)["enableInTreeAutoscaling"] for document in ray_kinds(documents))
    assert by_kind("dev", "PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_prod_shares_its_volume_scales_and_asks_for_api_keys() -> None:
    assert by_kind("prod", "PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]
    service = by_kind("prod", "RayService")
    assert cluster_spec(service)["enableInTreeAutoscaling"] is True
    for group in groups(service):
        pod = group["template"]["spec"]
        assert {"name": "PERDURE_KEYS", "value": "/etc/perdure/keys"} in pod["containers"][0]["env"]
        assert {"name": "keys", "secret": {"secretName": "perdure-api-keys"}} in pod["volumes"]


def test_the_image_is_made_from_the_lock_and_runs_as_nobody_special() -> None:
    lines = (ROOT / "k8s" / "Dockerfile").read_text()
    assert re.search(r"^FROM python:3\.11-slim$", lines, re.MULTILINE)
    assert "-r requirements.lock" in lines and "--no-deps" in lines
    assert re.search(r"^USER 1000:1000$", lines, re.MULTILINE) and lines.rindex("USER ") > lines.rindex("RUN ")
    for source in re.findall(r"^COPY (.+) \S+$", lines, re.MULTILINE):
        for name in source.split():
            assert (ROOT / name).exists(), f"the Dockerfile copies {name}, which does not exist"
            allowed = (ROOT / "k8s" / "Dockerfile.dockerignore").read_text().splitlines()
            assert f"!{name}" in allowed, f"{name} is copied but its build context leaves it out"
