"""No key and no word of a conversation is in any log, at any level, nor in the metrics."""

from __future__ import annotations

import logging
from pathlib import Path

import httpx
import pytest

from qwonnx.handlers.settings import ServerSettings
from tests.handlers.serving import MODEL, serving

pytestmark = pytest.mark.fast

KEY, GUESS, PROMPT, TOOL = "canary-key-5817", "canary-guess-9926", "canary-prompt-4403", "canary_tool_3310"
CANARIES = (KEY, "canary-single-7741", GUESS, PROMPT, TOOL)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_requests_of_every_kind_leave_no_key_and_no_prompt_behind(
    counting_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    log_format: str,
) -> None:
    path = tmp_path / "keys"
    path.write_text(f"billing: {KEY} max-requests=4 tokens-per-minute=100000\n")
    path.chmod(0o600)
    settings = ServerSettings(
        api_key="canary-single-7741", api_keys=str(path), log_format=log_format, shutdown_seconds=0.5
    )
    caplog.set_level(logging.DEBUG)
    for name in ("uvicorn", "uvicorn.error", "asyncio", "qwonnx"):
        caplog.set_level(logging.DEBUG, name)
    with serving(counting_folder, settings=settings) as served, served.http() as client:

        def post(body: object, key: str = KEY, path: str = "/v1/chat/completions") -> httpx.Response:
            return client.post(path, json=body, headers={"authorization": f"Bearer {key}"})

        asked = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3}
        assert post(asked).status_code == 200
        assert post({**asked, "stream": True}).status_code == 200
        assert post(asked, GUESS).status_code == 401
        assert post({**asked, "model": PROMPT}).status_code == 404
        assert post({**asked, "temperature": PROMPT}).status_code == 400
        assert post({**asked, PROMPT: 1}).status_code == 400
        assert post({**asked, "tools": [{"type": "function", "function": {"name": TOOL}}]}).status_code == 200
        assert post({**asked, "messages": [{"role": "user", "content": PROMPT * 100}]}).status_code == 400
        assert post({**asked, "response_format": {"type": "json_object"}}).status_code == 200
        assert post(asked, path=f"/v1/nothing?key={KEY}").status_code == 404
        metrics = client.get("/metrics", headers={"authorization": f"Bearer {KEY}"})
        assert metrics.status_code == 200
    records = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]  # the client's
    said = "".join(capfd.readouterr()) + metrics.text
    said += "".join(f"{record.getMessage()} {record.__dict__} {record.exc_text}\n" for record in records)
    assert "billing" in said
    for canary in CANARIES:
        assert canary not in said
