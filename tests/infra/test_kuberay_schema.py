"""The manifests of infra/ray against the fields that KubeRay and Kubernetes know, and that check against mistakes."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

RAY = Path(__file__).resolve().parents[2] / "infra" / "ray"
SCHEMA = yaml.safe_load((Path(__file__).parent / "kuberay_schema.yaml").read_text())
MANIFESTS = {path.name: yaml.safe_load(path.read_text()) for path in sorted(RAY.glob("*.yaml"))}
RAY_IO = {name: manifest for name, manifest in MANIFESTS.items() if manifest["apiVersion"].startswith("ray.io/")}
ABSENT = object()


def validator(definition: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({"$ref": f"#/$defs/{definition}", "$defs": SCHEMA["$defs"]})


def complaints(manifest: dict[str, Any]) -> list[str]:
    """`path: what is wrong there` for everything in a manifest that its kind does not allow."""
    found = validator(manifest["kind"]).iter_errors(manifest)
    return sorted(f"{error.json_path}: {error.message}" for error in found)


def changed(manifest: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """A copy with one value set, or taken away where it is ABSENT."""
    result = copy.deepcopy(manifest)
    place: Any = result
    for step in path[:-1]:
        place = place[step]
    if value is ABSENT:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return result


def paths(tree: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every key and index of a document, outermost first."""
    steps = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for step, below in steps:
        yield (*path, step)
        yield from paths(below, (*path, step))


def test_the_schema_is_one_and_names_only_what_it_defines():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    named = set(re.findall(r"#/\$defs/(\w+)", json.dumps(SCHEMA)))
    kinds = {manifest["kind"] for manifest in RAY_IO.values()}
    assert named | kinds == set(SCHEMA["$defs"])


def test_every_object_of_the_schema_with_named_fields_refuses_others():
    n_closed = 0
    nodes: list[Any] = [SCHEMA["$defs"]]
    while nodes:
        node = nodes.pop()
        nodes += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        if isinstance(node, dict) and node.get("type") == "object" and "properties" in node:
            assert node["additionalProperties"] is False, node
            n_closed += 1
    assert n_closed > 50


@pytest.mark.parametrize("name", RAY_IO)
def test_kuberay_knows_every_field_of_a_manifest(name):
    assert complaints(RAY_IO[name]) == []


@pytest.mark.parametrize("name", ["cytolake.raycluster.yaml", "pretrain.rayjob.yaml", "serve.rayservice.yaml"])
def test_no_field_of_a_manifest_can_be_misspelt(name):
    free = {"labels", "annotations", "rayStartParams", "limits", "requests"}  # maps of any names
    manifest = RAY_IO[name]
    check = validator(manifest["kind"])
    tried = 0
    for path in paths(manifest):
        if isinstance(path[-1], int) or (len(path) > 1 and path[-2] in free):
            continue
        broken = copy.deepcopy(manifest)
        place: Any = broken
        for step in path[:-1]:
            place = place[step]
        place[f"{path[-1]}s"] = place.pop(path[-1])
        assert not check.is_valid(broken), path
        tried += 1
    assert tried > 50


CLUSTER = ("spec", "rayClusterSpec")
WORKERS = (*CLUSTER, "workerGroupSpecs", 0)
POD = (*WORKERS, "template", "spec")
IN_CLUSTER = "$.spec.rayClusterSpec"
IN_WORKERS = f"{IN_CLUSTER}.workerGroupSpecs[0]"
IN_POD = f"{IN_WORKERS}.template.spec"


@pytest.mark.parametrize(
    ("path", "value", "at", "said"),
    [
        ((*CLUSTER, "workerGroupSpec"), [], IN_CLUSTER, "'workerGroupSpec' was unexpected"),
        ((*POD, "terminationGracePeriod"), 60, IN_POD, "'terminationGracePeriod' was unexpected"),
        ((*WORKERS, "replicas"), "2", f"{IN_WORKERS}.replicas", "'2' is not of type 'integer'"),
        ((*WORKERS, "replicas"), True, f"{IN_WORKERS}.replicas", "True is not of type 'integer'"),
        ((*WORKERS, "minReplicas"), -1, f"{IN_WORKERS}.minReplicas", "-1 is less than the minimum of 0"),
        ((*WORKERS, "minReplicas"), ABSENT, IN_WORKERS, "'minReplicas' is a required property"),
        ((*WORKERS, "rayStartParams", "cpus"), 8, f"{IN_WORKERS}.rayStartParams.cpus", "not of type 'string'"),
        ((*POD, "restartPolicy"), "never", f"{IN_POD}.restartPolicy", "'never' is not one of"),
        ((*POD, "containers", 0, "name"), ABSENT, f"{IN_POD}.containers[0]", "'name' is a required"),
        ((*POD, "containers", 0, "resources", "limits", "memory"), "32 GB",
         f"{IN_POD}.containers[0].resources.limits.memory", "'32 GB' does not match"),
        ((*CLUSTER, "headGroupSpec"), ABSENT, IN_CLUSTER, "'headGroupSpec' is a required"),
        ((*CLUSTER, "authOptions", "mode"), "tokens", f"{IN_CLUSTER}.authOptions.mode", "'tokens' is not one of"),
        (("spec", "submissionMode"), "K8SJobMode", "$.spec.submissionMode", "'K8SJobMode' is not one of"),
        (("spec", "submitterPodTemplate", "spec", "restartPolicy"), "Always",
         "$.spec.submitterPodTemplate.spec.restartPolicy", "'Always' is not one of ['Never', 'OnFailure']"),
        (CLUSTER, ABSENT, "$.spec", "is not valid under any of the given schemas"),
        (("spec", "backoffLimit"), 2.5, "$.spec.backoffLimit", "2.5 is not of type 'integer'"),
        (("metadata", "name"), "Pretrain_1", "$.metadata.name", "'Pretrain_1' does not match"),
        (("metadata", "name"), "p" * 48, "$.metadata.name", "is too long"),
        (("apiVersion",), "ray.io/v1alpha1", "$.apiVersion", "'ray.io/v1' was expected"),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_once_and_where_it_is(path, value, at, said):
    (complaint,) = complaints(changed(RAY_IO["pretrain.rayjob.yaml"], path, value))
    assert complaint.startswith(f"{at}: ")
    assert said in complaint


@pytest.mark.parametrize("quantity", [2, "2", "500m", "8Gi", "1.5", ".5", "1e3", "+2k"])
def test_a_quantity_is_a_whole_number_or_a_text_with_a_unit(quantity):
    assert validator("quantity").is_valid(quantity)


@pytest.mark.parametrize("quantity", [2.5, True, None, "", "8 Gi", "8GB", "8gi", "m", "1.2.3"])
def test_what_is_no_quantity_is_refused(quantity):
    assert not validator("quantity").is_valid(quantity)


@pytest.mark.parametrize("name", RAY_IO)
def test_what_the_operator_itself_checks_holds(name):
    spec = RAY_IO[name]["spec"]
    cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert spec.get("ttlSecondsAfterFinished", 0) == 0 or spec["shutdownAfterJobFinishes"] is True
    assert not cluster.get("enableInTreeAutoscaling"), "its sidecar needs the token that our pods do not mount"
