"""What infra/ and serve/config.yaml say, held against the code they start."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cytolake.pipeline.config import PipelineConfig
from cytolake.pipeline.overrides import apply_overrides
from cytolake.recipes import build_recipe

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = sorted((ROOT / "infra" / "ray").glob("*.yaml"))
WITH_PODS = [path for path in MANIFESTS if path.name not in ("lake.pvc.yaml", "network-policy.yaml")]
PRETRAIN = ROOT / "infra" / "ray" / "pretrain.rayjob.yaml"
DOCKERFILE = (ROOT / "infra" / "Dockerfile").read_text()
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def every(tree: Any, key: str) -> Iterator[Any]:
    """Values of a key anywhere in a document."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                yield value
            yield from every(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from every(value, key)


def pods(path: Path) -> list[dict[str, Any]]:
    found = [spec for spec in every(load(path), "spec") if "containers" in spec]
    assert found, path
    return found


def serve_configs() -> list[dict[str, Any]]:
    service = load(ROOT / "infra" / "ray" / "serve.rayservice.yaml")
    return [load(ROOT / "serve" / "config.yaml"), yaml.safe_load(service["spec"]["serveConfigV2"])]


def test_every_kind_of_manifest_is_there():
    kinds = {path.name: (load(path)["apiVersion"], load(path)["kind"]) for path in MANIFESTS}
    assert kinds == {
        "cytolake.raycluster.yaml": ("ray.io/v1", "RayCluster"),
        "lake.pvc.yaml": ("v1", "PersistentVolumeClaim"),
        "network-policy.yaml": ("networking.k8s.io/v1", "NetworkPolicy"),
        "pipeline.rayjob.yaml": ("ray.io/v1", "RayJob"),
        "pretrain.rayjob.yaml": ("ray.io/v1", "RayJob"),
        "serve.rayservice.yaml": ("ray.io/v1", "RayService"),
    }


@pytest.mark.parametrize("path", WITH_PODS, ids=lambda path: path.name)
def test_pods_have_few_rights_and_the_image_that_the_dockerfile_makes(path):
    for pod in pods(path):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        mounted = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["image"] == f"cytolake:{VERSION}"
            rights = container["securityContext"]
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["readOnlyRootFilesystem"] is True
            assert rights["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= mounted
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}, "Ray writes there"
            named = [variable for variable in container["env"] if "KEY" in variable["name"] and "value" in variable]
            assert all(variable["name"].endswith("_FILE") for variable in named), "a secret in a manifest"


@pytest.mark.parametrize("path", WITH_PODS, ids=lambda path: path.name)
def test_clusters_ask_for_the_token_and_run_the_pinned_ray(path):
    document = load(path)
    assert list(every(document, "authOptions")) == [{"mode": "token"}]
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert list(every(document, "rayVersion")) == [pinned[1]]
    selected = {"app.kubernetes.io/name": "cytolake"}
    for template in every(document, "template"):
        assert template["metadata"]["labels"] == selected, "the network policy finds pods by this label"
    policy = load(ROOT / "infra" / "ray" / "network-policy.yaml")
    assert policy["spec"]["podSelector"]["matchLabels"] == selected


def test_the_image_is_not_root_and_copies_what_exists():
    assert "USER 1000:1000" in DOCKERFILE
    ignored = (ROOT / ".dockerignore").read_text().split()
    for copied in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE):
        *sources, _ = copied.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, f"{source} never reaches the build"


def test_the_package_is_found_by_a_relative_path_everywhere():
    assert "PYTHONPATH=.:platform" in DOCKERFILE
    paths = [variable["value"] for path in WITH_PODS for env in every(load(path), "env") for variable in env
             if variable["name"] == "PYTHONPATH"]  # fmt: skip
    for path in WITH_PODS:
        for text in every(load(path), "runtimeEnvYAML"):
            paths.append(yaml.safe_load(text)["env_vars"]["PYTHONPATH"])
    for config in serve_configs():
        paths += [application["runtime_env"]["env_vars"]["PYTHONPATH"] for application in config["applications"]]
    assert len(paths) >= 8
    assert set(paths) == {".:platform"}


def commands() -> list[str]:
    """Every command line that starts a job: entry points and the comments that people copy."""
    texts = [*(path.read_text() for path in MANIFESTS), DOCKERFILE.replace('", "', " ").replace('"', "")]
    written = {found for text in texts for found in re.findall(r"python jobs/\w+\.py[^\n\]\"]*", text)}
    folded = {entrypoint for path in WITH_PODS for entrypoint in every(load(path), "entrypoint")}  # over several lines
    return sorted(written | folded)


def config_of(command: str) -> PipelineConfig:
    """The config that a command runs with."""
    words = shlex.split(command)
    config = build_recipe(words[words.index("--recipe") + 1])
    return apply_overrides(config, [words[i + 1] for i, word in enumerate(words) if word == "--set"])


@pytest.mark.parametrize("command", commands())
def test_a_command_names_a_job_a_recipe_and_fields_that_exist(command):
    words = shlex.split(command)
    assert (ROOT / words[1]).is_file(), words[1]
    if "--recipe" in words:
        assert isinstance(config_of(command), PipelineConfig)


def test_the_paths_in_commands_are_mounted():
    for path in WITH_PODS:
        for entrypoint in every(load(path), "entrypoint"):
            mounted = {mount["mountPath"] for mounts in every(load(path), "volumeMounts") for mount in mounts}
            assert set(re.findall(r"=(/\w+)", entrypoint)) <= mounted


def test_elastic_pretraining_has_a_pod_with_one_gpu_for_each_worker():
    job = load(PRETRAIN)["spec"]
    config = config_of(job["entrypoint"]).pretrain
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert config.use_gpu is True
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert config.min_workers is not None
    assert 1 <= config.min_workers < config.workers, "a lost node would stop the run"
    assert (group["minReplicas"], group["maxReplicas"]) == (config.min_workers, config.workers)
    assert group["replicas"] == group["maxReplicas"], "nothing adds the missing pods later"


def test_pretraining_goes_on_after_lost_workers_and_after_a_lost_cluster():
    job = load(PRETRAIN)["spec"]
    assert config_of(job["entrypoint"]).pretrain.max_failures >= 3
    assert job["backoffLimit"] >= 1


def test_ray_has_time_to_drain_before_kubernetes_kills_the_pod():
    cluster = load(PRETRAIN)["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (drain_s,) = [float(variable["value"]) for variable in pod["containers"][0]["env"]
                      if variable["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]  # fmt: skip
        assert pod["terminationGracePeriodSeconds"] >= drain_s + 15  # then Ray stops its processes


def test_ray_knows_the_variables_that_pretraining_sets():
    from ray._private import ray_constants
    from ray.train.v2._internal import constants

    job = load(PRETRAIN)["spec"]
    named = {variable["name"] for env in every(job, "env") for variable in env}
    named |= set(yaml.safe_load(job["runtimeEnvYAML"])["env_vars"])
    known = {*vars(ray_constants), *(value for value in vars(constants).values() if isinstance(value, str))}
    found = {name for name in named if name.startswith("RAY_")}
    assert len(found) >= 2
    assert found <= known


@pytest.mark.parametrize("path", WITH_PODS, ids=lambda path: path.name)
def test_every_ray_pod_writes_to_one_claim_that_many_nodes_may_mount(path):
    claim = load(ROOT / "infra" / "ray" / "lake.pvc.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    ray_pods = [template["spec"] for template in every(load(path), "template")]
    assert len(ray_pods) >= 2
    for pod in ray_pods:
        (lake,) = [volume for volume in pod["volumes"] if volume["name"] == "lake"]
        assert lake["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
        (mount,) = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "lake"]
        assert mount == {"name": "lake", "mountPath": "/lake"}
        assert {"name": "CYTOLAKE_ROOT", "value": mount["mountPath"]} in pod["containers"][0]["env"]


@pytest.mark.parametrize("config", serve_configs(), ids=["one machine", "kubernetes"])
def test_serve_configs_name_the_application_and_deployment_of_the_code(config):
    from ray.serve.schema import ServeDeploySchema

    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    module, name = application["import_path"].split(":")
    file = Path(*module.split(".")).with_suffix(".py")
    (found,) = (folder / file for folder in (ROOT, ROOT / "platform") if (folder / file).is_file())
    assert re.search(rf"^{name} = |^from \S+ import {name}$", found.read_text(), re.M)
    source = (ROOT / "platform" / "cytolake" / "serving" / "deployment.py").read_text()
    deployed = set(re.findall(r'name="(\w+)"', source))
    assert {deployment["name"] for deployment in application["deployments"]} == deployed


def test_one_machine_is_served_on_loopback():
    assert load(ROOT / "serve" / "config.yaml")["http_options"]["host"] == "127.0.0.1"
