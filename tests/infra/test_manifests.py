"""What infra/ and serve/config.yaml say, held against the code they start."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cytolake.line.config import Line
from cytolake.line.overrides import apply_overrides
from cytolake.recipes import build_recipe

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = sorted((ROOT / "infra" / "ray").glob("*.yaml"))
WITH_PODS = [path for path in MANIFESTS if path.name != "network-policy.yaml"]
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
            plain = [variable for variable in container["env"] if "KEY" in variable["name"] and "value" in variable]
            assert not plain, "a secret in a manifest"


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
    return sorted({found for text in texts for found in re.findall(r"python jobs/\w+\.py[^\n\]\"]*", text)})


@pytest.mark.parametrize("command", commands())
def test_a_command_names_a_job_a_recipe_and_fields_that_exist(command):
    words = shlex.split(command)
    assert (ROOT / words[1]).is_file(), words[1]
    if "--recipe" in words:
        line = build_recipe(words[words.index("--recipe") + 1])
        changed = apply_overrides(line, [words[i + 1] for i, word in enumerate(words) if word == "--set"])
        assert isinstance(changed, Line)


def test_the_paths_in_commands_are_mounted():
    for path in WITH_PODS:
        for entrypoint in every(load(path), "entrypoint"):
            mounted = {mount["mountPath"] for mounts in every(load(path), "volumeMounts") for mount in mounts}
            assert set(re.findall(r"=(/\w+)", entrypoint)) <= mounted


@pytest.mark.parametrize("config", serve_configs(), ids=["one machine", "kubernetes"])
def test_serve_configs_name_the_application_and_deployment_of_the_code(config):
    from ray.serve.schema import ServeDeploySchema

    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    module, name = application["import_path"].split(":")
    tree = ast.parse((ROOT / Path(*module.split("."))).with_suffix(".py").read_text())
    assigned = {target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets
                if isinstance(target, ast.Name)}  # fmt: skip
    assert name in assigned
    source = (ROOT / "platform" / "cytolake" / "serving" / "deployment.py").read_text()
    deployed = set(re.findall(r'name="(\w+)"', source))
    assert {deployment["name"] for deployment in application["deployments"]} == deployed


def test_one_machine_is_served_on_loopback():
    assert load(ROOT / "serve" / "config.yaml")["http_options"]["host"] == "127.0.0.1"
