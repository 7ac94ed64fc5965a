"""Two copies of one snapshot: different ids and samples, equal samples with a seed. copied_process.py makes copies."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.handlers.functions.lambda_service import Instance, LambdaService, event, running
from tests.handlers.serving import MODEL, chat, until

_COPY = [sys.executable, "-m", "tests.handlers.functions.copied_process"]
OURS = [*_COPY, "qwonnx.handlers.functions.lambda_runtime"]
AMAZONS = [*_COPY, "awslambdaric", "qwonnx.handlers.functions.aws_lambda.handler"]
SAME = {"PYTHONHASHSEED": "0", "AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start", "QWONNX_INVOKE_MODE": "BUFFERED"}


@dataclass(frozen=True)
class Said:
    """What tells two answers apart."""

    id: str
    request_id: str
    text: str


def said(service: LambdaService, **fields: Any) -> Said:
    request = {"model": MODEL, "messages": chat(), "max_tokens": 40, "temperature": 2.0, "top_p": 1.0, **fields}
    # A flat distribution: the counting model is sure of its next token.
    request["logit_bias"] = {str(token): 100 for token in range(40, 90)}
    answer = service.invoke(event("POST", "/v1/chat/completions", request, url=True))
    document = json.loads(answer["body"])
    return Said(document["id"], answer["headers"]["x-request-id"], document["choices"][0]["message"]["content"])


@contextmanager
def copies(folder: Path, command: list[str], **environment: str) -> Iterator[tuple[Instance, Instance]]:
    """Two copies, restored one after the other."""
    with ExitStack() as stack:
        both = [stack.enter_context(running(folder, command, **SAME, **environment)) for _ in range(2)]
        for instance in both:
            assert instance.service.restoring.wait(30)
            assert instance.service.waiting == 0
        for instance in both:
            instance.service.snapshot.release()
            until(lambda instance=instance: instance.service.waiting == 1)  # type: ignore[misc]
        yield both[0], both[1]


@pytest.mark.parametrize("command", [OURS, AMAZONS], ids=["ours", "amazons"])
def test_two_copies_of_a_snapshot_differ_and_a_seed_makes_them_equal(counting_folder: Path, command: list[str]) -> None:
    with copies(counting_folder, command) as (one, other):
        first, second = said(one.service), said(other.service)
        assert first.id != second.id
        assert first.text != second.text
        seeded, again = said(one.service, seed=7), said(other.service, seed=7)
        assert seeded.text == again.text
        assert seeded.id != again.id


def test_without_the_hooks_two_copies_would_be_equal(counting_folder: Path) -> None:
    """So that the test above can fail."""
    with copies(counting_folder, OURS, QWONNX_TEST_WITHOUT_HOOKS="1") as (one, other):
        assert said(one.service) == said(other.service)


def test_a_hook_that_fails_is_reported(counting_folder: Path, tmp_path: Path) -> None:
    """The store's package for its URL went away between the start and the restoring."""
    (tmp_path / "sitecustomize.py").write_text(
        "import qwonnx.handlers.chat.restore as restore\n"
        "def fail(self, material=b''): raise OSError('no network')\n"
        "restore.RestoreHooks.after_restore = fail\n"
    )
    environment = {**SAME, "PYTHONPATH": str(tmp_path)}
    with running(counting_folder, [sys.executable, "-m", OURS[-1]], **environment) as instance:
        assert instance.service.restoring.wait(30)
        instance.service.snapshot.release()
        where, document = instance.service.errors.get(timeout=20)
        assert (where, document["errorType"]) == ("restore", "Runtime.AfterRestoreError")
        assert "no network" in document["errorMessage"]
        assert instance.process.wait(10) == 1
