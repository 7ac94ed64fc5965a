"""The Cloud Run service: its fields exist, and its numbers are ones that Cloud Run takes.

Limits: https://docs.cloud.google.com/run/docs/configuring/services/memory-limits (32 GiB, and how much a number of CPUs
may have), .../request-timeout (3,600 s), .../about-concurrency (1,000), .../healthchecks (a start of 240 s at most).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.infra.manifests.documents import Document, check, container, one, pod_spec, variables

pytestmark = pytest.mark.fast

# CPUs: GiB of memory at most.
MAX_MEMORY = {"1": 4, "2": 8, "4": 16, "6": 24, "8": 32}


def complaints(document: Document) -> list[str]:
    """What Cloud Run would refuse, and where the numbers contradict each other."""
    spec, server, given = pod_spec(document), container(document), variables(document)
    limits, probe = server["resources"]["limits"], server["startupProbe"]
    holds = {
        "CPUs are 1, 2, 4, 6 or 8": limits["cpu"] in MAX_MEMORY,
        "memory fits the CPUs": 0 < int(limits["memory"].removesuffix("Gi")) <= MAX_MEMORY.get(limits["cpu"], 0),
        "a request takes an hour at most": 1 <= spec["timeoutSeconds"] <= 3600,
        "the server knows the timeout": given["CLOUD_RUN_TIMEOUT_SECONDS"] == str(spec["timeoutSeconds"]),
        "concurrency is the number of sequences": given["QWONNX_MAX_NUM_SEQS"] == str(spec["containerConcurrency"]),
        "concurrency is 1,000 at most": 1 <= spec["containerConcurrency"] <= 1000,
        "a start takes 240 s at most": probe["periodSeconds"] * probe["failureThreshold"] <= 240,
        "a probe ends before the next": probe["timeoutSeconds"] <= probe["periodSeconds"] <= 240,
        "the start waits for the model": probe["httpGet"]["path"] == "/health/ready",
        "the key is a secret": given["QWONNX_API_KEY"] is None,
        "the server is told the platform": given["QWONNX_PLATFORM"] == "cloud-run",
    }
    return [name for name, held in holds.items() if not held]


def test_the_service_keeps_to_the_limits() -> None:
    document = one("cloud-run/service.yaml")
    check(document)
    assert complaints(document) == []


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda d: container(d)["resources"]["limits"].update(cpu="16"), "CPUs are 1, 2, 4, 6 or 8"),
        (lambda d: container(d)["resources"]["limits"].update(memory="64Gi"), "memory fits the CPUs"),
        (lambda d: container(d)["resources"]["limits"].update(cpu="2"), "memory fits the CPUs"),
        (lambda d: pod_spec(d).update(timeoutSeconds=7200), "a request takes an hour at most"),
        (lambda d: pod_spec(d).update(containerConcurrency=80), "concurrency is the number of sequences"),
        (lambda d: container(d)["startupProbe"].update(failureThreshold=300), "a start takes 240 s at most"),
    ],
)
def test_a_spoilt_service_is_noticed(spoil: Callable[[Document], object], complaint: str) -> None:
    document = one("cloud-run/service.yaml")
    spoil(document)
    assert complaint in complaints(document)
