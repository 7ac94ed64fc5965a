"""What an operator sets: browsers of other origins, TLS, a client's own time, and the options of `qwonnx serve`."""

from __future__ import annotations

import datetime
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from qwonnx.handlers.app import create_app
from qwonnx.handlers.cli.serve_options import read_options
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.server import Server
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.errors import SettingsError
from tests.handlers.fakes import ask
from tests.handlers.serving import MODEL, Served, paced, serving, until

pytestmark = pytest.mark.fast

ORIGIN = "https://pages.example"
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


def _never() -> Any:
    raise AssertionError("not loaded")


def _app(**settings: Any) -> Any:
    return create_app(ModelHost(_never), ServerSettings(**settings))


def test_a_page_of_another_origin_may_not_use_the_server_by_default() -> None:
    for path in ("/v1/chat/completions", "/health/live"):
        answer = ask(_app(), "OPTIONS", path, headers=PREFLIGHT)
        assert answer.status_code == 405
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_a_page_of_a_named_origin_may_and_its_preflight_needs_no_key() -> None:
    app = _app(cors_origins=(ORIGIN,), api_key="secret")
    answer = ask(app, "OPTIONS", "/v1/chat/completions", headers=PREFLIGHT)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()
    assert "access-control-allow-credentials" not in answer.headers
    # A refusal can be read by the page as well.
    refused = ask(app, "GET", "/v1/models", headers={"origin": ORIGIN})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ORIGIN)
    assert "x-request-id" in refused.headers["access-control-expose-headers"]
    other = ask(app, "OPTIONS", "/v1/chat/completions", headers={**PREFLIGHT, "origin": "https://evil.example"})
    assert other.status_code == 400
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("origin", ["", "pages.example", "https://pages.example/", "https://a b", "null", "ftp://x"])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(SettingsError, match="cors_origins"):
        ServerSettings(cors_origins=(origin,))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "certificate.pem").write_bytes(made.public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    locked = serialization.BestAvailableEncryption(b"password")
    (folder / "locked.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, locked))
    return folder / "certificate.pem", folder / "key.pem"


def test_tls_serves_whole_and_streamed_answers(counting_folder: Path, certificate: tuple[Path, Path]) -> None:
    crt, key = map(str, certificate)
    settings = ServerSettings(tls_certificate=crt, tls_key=key, shutdown_seconds=0.5)
    with serving(counting_folder, settings=settings) as served:
        url = served.url.replace("http://127.0.0.1", "https://localhost")
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 40}
        with httpx.Client(base_url=url, verify=ssl.create_default_context(cafile=crt), trust_env=False) as client:
            assert client.post("/v1/chat/completions", json=body).status_code == 200
            streamed = client.post("/v1/chat/completions", json={**body, "stream": True})
            assert streamed.text.endswith("data: [DONE]\n\n")
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{served.url}/health/live", trust_env=False)


def test_a_certificate_that_cannot_be_used_is_refused_without_asking_for_a_password(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    crt, key = certificate
    (tmp_path / "other.pem").write_text("nothing")
    host = ModelHost(_never)
    locked = crt.parent / "locked.pem"
    for pair in ((crt, crt), (crt, tmp_path / "none.pem"), (tmp_path / "other.pem", key), (crt, locked)):
        with pytest.raises(SettingsError, match=r"tls_certificate .* cannot be used"):
            Server(host, ServerSettings(tls_certificate=str(pair[0]), tls_key=str(pair[1])))
    with pytest.raises(SettingsError, match="belong together"):
        ServerSettings(tls_certificate=str(crt))
    with pytest.raises(SettingsError, match="belong together"):
        ServerSettings(tls_key=str(key))


@pytest.fixture(scope="module")
def slow(counting_folder: Path) -> Iterator[Served]:
    with serving(counting_folder) as served, paced(served.engine, 0.03):
        yield served


def _post(served: Served, timeout: str, text: str, **fields: object) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 300, **fields}
    with served.http() as client:
        return client.post("/v1/chat/completions", json=body, headers={"x-request-timeout": timeout})


def test_a_clients_own_time_ends_an_answer_as_it_is_and_fails_one_that_has_not_begun(slow: Served) -> None:
    ended = _post(slow, "2", "Hi")
    assert ended.status_code == 200
    assert ended.json()["choices"][0]["finish_reason"] == "length"
    assert 1 < ended.json()["usage"]["completion_tokens"] < 150
    streamed = _post(slow, "2", "Hi", stream=True)
    assert '"finish_reason":"length"' in streamed.text
    assert streamed.text.endswith("data: [DONE]\n\n")
    until(lambda: slow.engine.num_live_requests == 0)
    time.sleep(0.1)  # a step that still ran would answer the next request at once
    late = _post(slow, "0.02", "Hi")
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    until(lambda: slow.engine.num_live_requests == 0)


@pytest.mark.parametrize("timeout", ["", "soon", "0", "-1", "nan", "inf", "1e9", "1,5"])
def test_a_time_that_is_none_is_refused(slow: Served, timeout: str) -> None:
    refused = _post(slow, timeout, "Hi")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_header")
    assert "x-request-timeout" in refused.json()["error"]["message"]


def test_every_option_reaches_its_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWONNX_CORS_ORIGINS", "https://of-the-variable.example")
    words = [
        *("--max-requests-in-flight", "9", "--key-max-requests", "2", "--key-tokens-per-minute", "500"),
        *("--metrics-names", "vllm", "--log-format", "json", "--telemetry"),
        *("--cors-origin", ORIGIN, "--cors-origin", "*", "--tls-certificate", "c", "--tls-key", "k"),
    ]
    found = read_options([str(tmp_path), *words]).server
    assert found == ServerSettings(
        max_requests_in_flight=9,
        key_max_requests=2,
        key_tokens_per_minute=500,
        metrics_names="vllm",
        log_format="json",
        telemetry=True,
        cors_origins=(ORIGIN, "*"),
        tls_certificate="c",
        tls_key="k",
    )
    assert read_options([str(tmp_path)]).server.cors_origins == ("https://of-the-variable.example",)
