"""Lines of the log as JSON: one object a line, whatever it is about."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from qwonnx.handlers.http.access_log import AccessLog
from qwonnx.handlers.http.finished_request import Endpoints
from qwonnx.handlers.http.log_lines import JsonLines
from qwonnx.handlers.settings import ServerSettings
from tests.handlers.fakes import ask
from tests.handlers.http.test_access_log import APIS
from tests.handlers.serving import MODEL, chat, serving

pytestmark = pytest.mark.fast

_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def _access_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    formatter = JsonLines()
    return [json.loads(formatter.format(record)) for record in caplog.records if record.name == "qwonnx.access"]


def test_a_line_of_the_access_log_has_key_and_tokens(counting_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "qwonnx.access")
    settings = ServerSettings(log_format="json", api_key="secret", shutdown_seconds=0.5)
    with serving(counting_folder, settings=settings) as served, served.client("secret") as client:
        answer = client.chat.completions.create(
            model=MODEL, messages=chat("How?"), max_tokens=5, extra_headers={"x-request-id": "mine"}
        )
    (line,) = (each for each in _access_lines(caplog) if each["path"] == "/v1/chat/completions")
    assert answer.usage is not None
    assert re.fullmatch(_TIME, str(line.pop("time")))
    first, each, whole = (line.pop(name) for name in ("first_token_seconds", "seconds_per_token", "seconds"))
    assert isinstance(first, float)
    assert isinstance(whole, float)
    assert 0 < first <= whole
    assert isinstance(each, float)
    assert line == {
        "level": "INFO",
        "logger": "qwonnx.access",
        "method": "POST",
        "path": "/v1/chat/completions",
        "endpoint": "/v1/chat/completions",
        "status": 200,
        "request_id": "mine",
        "key": "default",
        "prompt_tokens": answer.usage.prompt_tokens,
        "cached_tokens": line["cached_tokens"],
        "generated_tokens": 5,
    }


def test_a_request_without_tokens_has_no_empty_fields(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "qwonnx.access")

    async def app(scope: object, receive: object, send: object) -> None:
        raise ZeroDivisionError("inside")

    answer = ask(AccessLog(app, apis=APIS, endpoints=Endpoints(()), log_format="json"), "GET", '/a"b%0Ac')
    assert answer.status_code == 500
    (line,) = _access_lines(caplog)[-1:]
    assert set(line) == {"time", "level", "logger", "method", "path", "endpoint", "status", "seconds", "request_id"}
    assert (line["path"], line["endpoint"], line["status"]) == ("/a%22b%0Ac", "other", 500)


def test_other_lines_are_objects_too_with_their_traceback() -> None:
    logger = logging.getLogger("qwonnx.test_log_lines")
    try:
        raise ValueError("of\nthe test")
    except ValueError:
        import sys

        record = logger.makeRecord(logger.name, logging.ERROR, "f", 1, "failed: %s", ("a\nb",), sys.exc_info())
    line = JsonLines().format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert re.fullmatch(_TIME, told.pop("time"))
    assert "ValueError: of\nthe test" in told.pop("exception")
    assert told == {"level": "ERROR", "logger": "qwonnx.test_log_lines", "message": "failed: a\nb"}
