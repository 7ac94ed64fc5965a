"""Manifests for clusters: their fields exist, and their numbers agree with the server's."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest

from qwonnx.handlers.cli.serve_options import read_options
from qwonnx.handlers.configuration.environment import variables as known_variables
from tests.infra.manifests.documents import (
    INFRA,
    KUBERNETES,
    Document,
    Manifest,
    check,
    container,
    manifests,
    one,
    pod_spec,
    variables,
)

pytestmark = pytest.mark.fast

ALL = list(manifests(KUBERNETES))
SERVERS = [each for each in ALL if each.kind in ("Deployment", "ServingRuntime")]
SERVERS += [each for each in ALL if each.path == "kubernetes/knative/service.yaml"]
PAUSE_SECONDS = 5


def name_of(manifest: Manifest) -> str:
    return manifest.path


@pytest.mark.parametrize("manifest", ALL, ids=name_of)
def test_every_field_of_a_manifest_is_known(manifest: Manifest) -> None:
    check(manifest.document)


def misspell(document: Document) -> None:
    """A field that nobody knows, deep inside."""
    spec = document.get("spec", document)
    spec["portz"] = 1


def misspell_in_container(document: Document) -> None:
    container(document)["imagePullPolici"] = "Always"


def port_as_word(document: Document) -> None:
    container(document)["ports"][0]["containerPort"] = "eighty"


SPOILT: list[tuple[str, Callable[[Document], object]]] = [
    *((each.path, misspell) for each in ALL),
    *((each.path, misspell_in_container) for each in SERVERS),
    *((each.path, port_as_word) for each in SERVERS),
    ("kubernetes/keda/scaled-object.yaml", lambda d: d["spec"]["triggers"][0]["metadata"].pop("threshold")),
    ("kubernetes/keda/scaled-object.yaml", lambda d: d["spec"]["triggers"][0]["metadata"].update(threshold=2)),
    ("kubernetes/keda/scaled-object.yaml", lambda d: d["spec"].update(maxReplicaCount="4")),
    ("kubernetes/knative/service.yaml", lambda d: d["spec"]["template"]["spec"].update(containerConcurrency=5000)),
    ("kubernetes/kserve/inference-service.yaml", lambda d: d["spec"]["predictor"]["model"].update(storageUri="/mnt")),
    ("kubernetes/kserve/serving-runtime.yaml", lambda d: d["spec"].update(protocolVersions=["v3"])),
    ("kubernetes/base/kustomization.yaml", lambda d: d["images"][0].update(digest="sha256:1")),
    ("kubernetes/hpa/horizontal-pod-autoscaler.yaml", lambda d: d["spec"].pop("maxReplicas")),
    ("kubernetes/base/network-policy.yaml", lambda d: d["spec"].update(egress={})),
]


@pytest.mark.parametrize(("path", "spoil"), SPOILT, ids=[f"{path}-{n}" for n, (path, _) in enumerate(SPOILT)])
def test_a_spoilt_manifest_is_refused(path: str, spoil: Callable[[Document], object]) -> None:
    document = one(path)
    check(document)
    spoil(document)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(document)


def test_every_resource_of_a_kustomization_exists_and_every_file_is_one() -> None:
    listed = set()
    for each in ALL:
        folder = (INFRA / each.path).parent
        if each.kind == "Kustomization":
            for resource in each.document["resources"]:
                place = (folder / resource).resolve()
                assert place.is_file() or (place / "kustomization.yaml").is_file(), f"{each.path}: {resource}"
                listed.add(place)
    files = {path for path in KUBERNETES.rglob("*.yaml") if path.name != "kustomization.yaml"}
    assert files <= listed


@pytest.mark.parametrize("manifest", SERVERS, ids=name_of)
def test_a_server_has_no_rights_and_cannot_write(manifest: Manifest) -> None:
    settings = container(manifest.document)["securityContext"]
    pod = pod_spec(manifest.document)
    allowed = {**pod.get("securityContext", {}), **settings}
    assert allowed["runAsNonRoot"] is True
    assert allowed["runAsUser"] == 65532
    assert allowed["readOnlyRootFilesystem"] is True
    assert allowed["allowPrivilegeEscalation"] is False
    assert allowed["capabilities"] == {"drop": ["ALL"]}
    assert allowed["seccompProfile"] == {"type": "RuntimeDefault"}
    if manifest.kind == "ServingRuntime":  # KServe takes this from the InferenceService
        pod = one("kubernetes/kserve/inference-service.yaml")["spec"]["predictor"]
    else:
        assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize("manifest", SERVERS, ids=name_of)
def test_a_server_is_asked_for_its_health_and_has_resources(manifest: Manifest) -> None:
    server = container(manifest.document)
    assert server["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert server["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    assert set(server["resources"]["requests"]) == {"cpu", "memory"}
    assert server["resources"]["limits"]["memory"] == server["resources"]["requests"]["memory"]


@pytest.mark.parametrize("manifest", SERVERS, ids=name_of)
def test_variables_are_the_servers_own_and_no_secret_is_written_down(manifest: Manifest) -> None:
    given = variables(manifest.document)
    names = {variable.name for variable in known_variables()} | {"PORT"}
    assert set(given) <= names
    assert given.get("QWONNX_API_KEY") is None


def grace_seconds(document: Document) -> float:
    """Of the pod, after SIGTERM."""
    pod = pod_spec(document)
    pause = container(document).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    if document["kind"] == "ServingRuntime":
        pod = one("kubernetes/kserve/inference-service.yaml")["spec"]["predictor"]
    return float(pod.get("terminationGracePeriodSeconds") or pod["timeoutSeconds"]) - float(pause)


@pytest.mark.parametrize("manifest", SERVERS, ids=name_of)
def test_running_answers_have_time_to_end(manifest: Manifest) -> None:
    wanted = float(variables(manifest.document)["QWONNX_SHUTDOWN_SECONDS"] or "")
    assert grace_seconds(manifest.document) > wanted + PAUSE_SECONDS


def test_a_grace_period_that_is_too_short_is_noticed() -> None:
    spoilt = one("kubernetes/base/deployment.yaml")
    pod_spec(spoilt)["terminationGracePeriodSeconds"] = 30
    assert not grace_seconds(spoilt) > 20 + PAUSE_SECONDS


def test_autoscalers_read_a_metric_that_the_server_has_and_scale_the_deployment() -> None:
    source = (INFRA.parent / "handlers" / "http" / "metrics.py").read_text(encoding="utf-8")
    names = {f"qwonnx_{name}" for name in re.findall(r'value\("(\w+)", "gauge"', source)}
    hpa, keda = one("kubernetes/hpa/horizontal-pod-autoscaler.yaml"), one("kubernetes/keda/scaled-object.yaml")
    (metric,) = hpa["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in names
    (trigger,) = keda["spec"]["triggers"]
    assert set(re.findall(r"qwonnx_\w+", trigger["metadata"]["query"])) <= names
    deployment = one("kubernetes/base/deployment.yaml")
    assert "replicas" not in deployment["spec"], "an autoscaler's number would be overwritten at each apply"
    assert hpa["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert keda["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert variables(deployment)["QWONNX_OPEN_METRICS"] == "true"


def test_selectors_choose_the_pods_and_nothing_goes_out() -> None:
    deployment = one("kubernetes/base/deployment.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    policy = one("kubernetes/base/network-policy.yaml")["spec"]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        one("kubernetes/base/service.yaml")["spec"]["selector"],
        one("kubernetes/base/pod-disruption-budget.yaml")["spec"]["selector"]["matchLabels"],
        policy["podSelector"]["matchLabels"],
    ]
    assert all(selector == labels for selector in selectors)
    assert policy["egress"] == []
    assert "Egress" in policy["policyTypes"]


def test_a_platforms_concurrency_is_the_number_of_sequences() -> None:
    knative = one("kubernetes/knative/service.yaml")
    assert str(pod_spec(knative)["containerConcurrency"]) == variables(knative)["QWONNX_MAX_NUM_SEQS"]
    runtime = one("kubernetes/kserve/serving-runtime.yaml")
    predictor = one("kubernetes/kserve/inference-service.yaml")["spec"]["predictor"]
    assert str(predictor["containerConcurrency"]) == variables(runtime)["QWONNX_MAX_NUM_SEQS"]
    assert predictor["model"]["modelFormat"]["name"] == runtime["spec"]["supportedModelFormats"][0]["name"]
    assert predictor["model"]["runtime"] == runtime["metadata"]["name"]
    answer = float(variables(knative)["QWONNX_MAX_ANSWER_SECONDS"] or "")
    assert answer < pod_spec(knative)["timeoutSeconds"]


def test_a_readme_explains_every_folder() -> None:
    text = (KUBERNETES / "README.md").read_text(encoding="utf-8")
    folders = {path.name for path in KUBERNETES.iterdir() if path.is_dir()}
    assert {folder for folder in folders if f"`{folder}/`" not in text} == set()
    assert all((INFRA / name / "README.md").is_file() for name in ("docker", "sam", "cloud-run", "systemd"))


@pytest.mark.parametrize("manifest", [*SERVERS, *manifests(INFRA / "cloud-run")], ids=name_of)
def test_a_server_with_these_variables_listens_for_the_platform(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Read as `qwonnx serve` reads them, over those of the image."""
    image = (INFRA / "docker" / "cpu.Dockerfile").read_text(encoding="utf-8")
    platform, port = re.findall(r"QWONNX_PLATFORM=(\S+)", image), re.findall(r" PORT=(\d+)", image)
    assert (len(platform), len(port)) == (1, 1)
    given = {"QWONNX_PLATFORM": platform[0], "PORT": port[0], **variables(manifest.document)}
    for name in [name for name in os.environ if name.startswith("QWONNX_")]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, "secret" if value is None else value)
    options = read_options([str(tmp_path)])
    assert (options.host, options.port, options.warning) == ("0.0.0.0", 8080, None)
    assert options.runtime.max_num_seqs == 8
