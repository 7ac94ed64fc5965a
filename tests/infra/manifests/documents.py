"""The manifests as documents, and what checks them.

kubernetes-validate knows the cluster's own kinds. For kinds of others (KEDA, Knative, KServe) the schemas here have
their fields, and their containers are checked as a pod's.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

INFRA = Path(__file__).resolve().parent.parent.parent.parent / "infra"
KUBERNETES = INFRA / "kubernetes"
_SCHEMAS = Path(__file__).resolve().parent / "schemas"
_VERSION = "1.37"
_OTHERS = {
    ("keda.sh/v1alpha1", "ScaledObject"): "keda-scaled-object",
    ("serving.knative.dev/v1", "Service"): "knative-service",
    ("serving.kserve.io/v1beta1", "InferenceService"): "kserve-inference-service",
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): "kserve-serving-runtime",
    ("kustomize.config.k8s.io/v1beta1", "Kustomization"): "kustomization",
}

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A file's document. `path` is relative to infra/."""

    path: str
    document: Document

    @property
    def kind(self) -> str:
        return str(self.document["kind"])


def manifests(folder: Path) -> Iterator[Manifest]:
    for path in sorted(folder.rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            yield Manifest(path.relative_to(INFRA).as_posix(), document)


def one(path: str) -> Document:
    """A copy of a file's only document."""
    (found,) = (each for each in manifests((INFRA / path).parent) if each.path == path)
    return copy.deepcopy(found.document)


def check(document: Document) -> None:
    """Refuse unknown fields and wrong values.

    Raises:
        jsonschema.ValidationError, kubernetes_validate.ValidationError: what is wrong.
    """
    name = _OTHERS.get((document["apiVersion"], document["kind"]))
    if name is None:
        kubernetes_validate.validate(document, _VERSION, strict=True)
        return
    schema = json.loads((_SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    jsonschema.validate(document, schema, jsonschema.Draft202012Validator)
    if document["kind"] in ("Service", "ServingRuntime"):
        check(_as_pod(pod_spec(document)))


def pod_spec(document: Document) -> Document:
    """The part of a document that has containers.

    Raises:
        KeyError: it has none.
    """
    spec: Document = document["spec"]
    return spec["template"]["spec"] if "template" in spec else spec


def container(document: Document) -> Document:
    (found,) = pod_spec(document)["containers"]
    assert isinstance(found, dict)
    return found


def variables(document: Document) -> dict[str, str | None]:
    """The container's variables; None for one from a secret."""
    return {each["name"]: each.get("value") for each in container(document)["env"]}


def _as_pod(spec: Document) -> Document:
    spec = copy.deepcopy(spec)
    containers = []
    for each in spec["containers"]:
        named = {"name": "server", **each}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe in named:  # Knative fills the port in
                named[probe]["httpGet"].setdefault("port", 8080)
        containers.append(named)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": {"containers": containers}}
