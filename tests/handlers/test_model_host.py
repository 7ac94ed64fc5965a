"""The engine from its folder to ready, and the answers to requests meanwhile."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from qwonnx.handlers.errors import ErrorKind, ServiceError
from qwonnx.handlers.model_host import HostStatus, ModelHost
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.errors import SessionError
from tests.handlers.serving import MODEL, RUNTIME, until

pytestmark = pytest.mark.fast


def host_of(folder: Path, **options: Any) -> ModelHost:
    return ModelHost(lambda: Engine.open(folder, RUNTIME), **options)


def refusal(host: ModelHost) -> ServiceError:
    with pytest.raises(ServiceError) as raised:
        host.ready_engine()
    return raised.value


def test_a_host_is_ready_once_its_engine_has_answered_and_closes_it(counting_folder: Path) -> None:
    host = host_of(counting_folder)
    seen = [host.status]
    host.wait()
    seen.append(host.status)
    assert seen == [HostStatus.LOADING, HostStatus.READY]
    engine = host.ready_engine()
    assert engine.is_ready
    assert host.fingerprint == f"fp_{engine.artifact.id[:12]}"
    host.close()
    host.close()
    assert (host.status, engine.is_ready) == (HostStatus.CLOSING, False)


def test_it_loads_once_and_on_a_thread_of_its_own(counting_folder: Path) -> None:
    threads: list[str] = []

    def load() -> Engine:
        threads.append(threading.current_thread().name)
        return Engine.open(counting_folder, RUNTIME)

    host = ModelHost(load, on_ready=lambda: threads.append("ready"))
    for _ in range(3):
        host.start()
    host.wait()
    host.wait()
    assert threads == ["qwonnx-load", "ready"]
    host.close()


def test_a_request_does_not_wait_for_a_model_that_nobody_loads(counting_folder: Path) -> None:
    with pytest.raises(ServiceError) as refused:
        asyncio.run(host_of(counting_folder).engine_when_ready(8))
    assert (refused.value.status, refused.value.code) == (503, "model_not_ready")


def test_a_request_is_told_why_there_is_no_model_yet(counting_folder: Path) -> None:
    host = host_of(counting_folder)
    loading = refusal(host)
    assert (loading.kind, loading.status, loading.code) == (ErrorKind.UNAVAILABLE, 503, "model_not_ready")
    assert (loading.message, loading.headers) == ("the model is loading", {"retry-after": "1"})
    host.wait()
    host.begin_close()
    closing = refusal(host)
    assert (closing.kind, closing.status, closing.code) == (ErrorKind.UNAVAILABLE, 503, "server_closing")
    host.close()


def test_loading_that_fails_is_reported_once_and_tells_a_client_nothing_of_why() -> None:
    def load() -> Engine:
        raise SessionError("cannot load /secret/folder")

    failures: list[Exception] = []
    host = ModelHost(load, on_ready=lambda: pytest.fail("it is not ready"), on_failure=failures.append)
    with pytest.raises(SessionError):
        host.wait()
    assert host.status is HostStatus.FAILED
    assert [str(error) for error in failures] == ["cannot load /secret/folder"]
    assert refusal(host).message == "the model failed: see the server's log"


def test_a_failure_that_nobody_asked_for_goes_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def load() -> Engine:
        raise SessionError("inside")

    host = ModelHost(load)
    host.start()
    until(lambda: host.status is HostStatus.FAILED)
    until(lambda: "the model could not be loaded: inside" in caplog.text)


def test_a_host_that_is_closed_while_it_loads_closes_what_was_loaded(counting_folder: Path) -> None:
    may_load = threading.Event()
    opened: list[Engine] = []

    def load() -> Engine:
        may_load.wait()
        opened.append(Engine.open(counting_folder, RUNTIME))
        return opened[0]

    host = ModelHost(load, on_failure=lambda error: pytest.fail("being closed is no failure"))
    host.start()
    host.close()
    may_load.set()
    host.wait()
    assert host.status is HostStatus.CLOSING
    assert not opened[0].is_ready


def test_an_engine_that_stopped_because_of_a_fault_has_failed(counting_folder: Path) -> None:
    host = host_of(counting_folder)
    host.wait()
    host.ready_engine().close()
    assert host.status is HostStatus.FAILED
    assert refusal(host).code == "model_not_ready"


def test_the_model_has_the_checkpoints_name_or_one_that_it_was_given(counting_folder: Path) -> None:
    host, named = host_of(counting_folder), host_of(counting_folder, model_names=("mine", "other"))
    assert named.model_names() == ("mine", "other"), "known before the model is loaded"
    with pytest.raises(ServiceError, match="is loading"):
        host.model_names()
    host.wait()
    assert host.model_names() == (host.check_model(MODEL),) == (MODEL,)
    assert named.check_model("mine") == "mine"
    with pytest.raises(ServiceError) as unknown:
        named.check_model(MODEL)
    assert (unknown.value.kind, unknown.value.status) == (ErrorKind.NOT_FOUND, 404)
    assert (unknown.value.parameter, unknown.value.code) == ("model", "model_not_found")
    assert unknown.value.message == f"there is no model {MODEL!r} here: use 'mine' or 'other'"
    assert named.check_model("other") == "other"
    assert host_of(counting_folder, model_names=("mine",), any_model_name=True).check_model("haiku") == "haiku"
    host.close()
