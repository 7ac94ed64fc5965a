"""Answers that are cut off and go on in another instance: together they are the whole answer. Refused tokens."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import httpx
import pytest
from starlette.applications import Starlette

from qwonnx.handlers.app import create_app
from qwonnx.handlers.chat.continuation_token import Continuation, ContinuationSigner
from qwonnx.handlers.chat.outputs import OutputStream
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import RequestOutput
from qwonnx.runtime.errors import QueueFullError, SettingsError
from tests.handlers.fakes import ask
from tests.handlers.serving import MODEL, RUNTIME, chat, paced
from tests.runtime import counting_model

pytestmark = pytest.mark.fast

SECRET = "a secret of all instances"
BIASES = {str(token): 100 for token in range(40, 90)}  # the counting model is sure of its next token
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
THOUGHTS = (
    "<think>\nSo 1 < 2, </thin and é 🙂 then.\n</think>\n\nA <tool, then é 🙂.\n<tool_call>\n<function=weather>\n"
    "<parameter=city>\nOslo é\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=weather>\n"
    "<parameter=city>\nBergen\n</parameter>\n</function>\n</tool_call>"
)


@pytest.fixture
def cutting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """After how many outputs each request's deadline passes: the last number, or never without one."""
    after: list[int] = []
    original = OutputStream._next
    counts: WeakKeyDictionary[OutputStream, int] = WeakKeyDictionary()

    async def counted(self: OutputStream) -> RequestOutput | None:
        if after and counts.get(self, 0) >= after[-1]:
            self._deadline = 0.0
        counts[self] = counts.get(self, 0) + 1
        return await original(self)

    monkeypatch.setattr(OutputStream, "_next", counted)
    return after


@dataclass
class Instances:
    """Applications of one artifact with one store."""

    apps: list[Starlette]
    engines: list[Engine]
    num_parts: int = 0  # that in_parts() asked for

    def post(self, which: int, **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "messages": chat("Hi"), "temperature": 0, **fields}
        return ask(self.apps[which % len(self.apps)], "POST", "/v1/chat/completions", json=body)


@contextmanager
def instances(folder: Path, store: Path | str, number: int = 2, **settings: Any) -> Iterator[Instances]:
    with ExitStack() as stack:
        engines = [stack.enter_context(Engine.open(folder, RUNTIME)) for _ in range(number)]
        made = ServerSettings(
            **{"capsules": str(store), "continuation_secret": SECRET, "max_answer_seconds": 60.0, **settings}
        )
        apps = [create_app(engine, made) for engine in engines]
        for app, engine in zip(apps, engines, strict=True):
            engine.start()
            engine.warm_up()
            app.state.host.wait()
        yield Instances(apps, engines)
        for engine in engines:
            assert engine.check() == []


@dataclass
class Whole:
    """What all parts of an answer say together."""

    content: str = ""
    reasoning: str = ""
    calls: list[dict[str, str]] = field(default_factory=list)
    num_tokens: int = 0
    num_reasoning: int = 0
    reason: str = ""


def is_complete(call: dict[str, str]) -> bool:
    try:
        json.loads(call["arguments"])
    except ValueError:
        return False
    return True


def take(whole: Whole, response: httpx.Response, *, stream: bool) -> str | None:
    """Add an answer's content; return its continuation."""
    assert response.status_code == 200, response.text
    if not stream:
        document = response.json()
        choice = document["choices"][0]
        message, usage = choice["message"], document["usage"]
        whole.content += message["content"] or ""
        whole.reasoning += message.get("reasoning_content", "")
        for call in message.get("tool_calls", ()):
            if whole.calls and not is_complete(whole.calls[-1]):
                assert call["function"]["name"] == whole.calls[-1]["name"]
                whole.calls[-1]["arguments"] += call["function"]["arguments"]
            else:
                whole.calls.append(call["function"])
        token: str | None = document.get("continuation")
        whole.reason = choice["finish_reason"]
    else:
        *events, done, _ = response.text.split("\n\n")
        assert done == "data: [DONE]"
        chunks = [json.loads(line.removeprefix("data: ")) for line in events]
        usage = chunks.pop()["usage"]
        for chunk in chunks:
            delta = chunk["choices"][0]["delta"]
            whole.content += delta.get("content", "")
            whole.reasoning += delta.get("reasoning_content", "")
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    assert call["index"] == len(whole.calls)
                    whole.calls.append({"name": call["function"]["name"], "arguments": ""})
                assert call["index"] == len(whole.calls) - 1
                whole.calls[-1]["arguments"] += call["function"]["arguments"]
        token = chunks[-1].get("continuation")
        whole.reason = chunks[-1]["choices"][0]["finish_reason"]
    whole.num_tokens += usage["completion_tokens"]
    whole.num_reasoning += usage["completion_tokens_details"]["reasoning_tokens"]
    if token is not None:
        assert whole.reason == "length"
    return token


def in_parts(made: Instances, cutting: list[int], after: int, *, stream: bool | None = False, **fields: Any) -> Whole:
    """An answer whose parts have so many tokens each, alternately from each instance; None: streamed and whole ones."""
    whole, token, part = Whole(), None, 0
    cutting.append(after)
    try:
        while part == 0 or token is not None:
            going_on: dict[str, Any] = {} if token is None else {"continuation": token}
            streams = part % 2 == 0 if stream is None else stream
            more = {"stream": True, "stream_options": {"include_usage": True}} if streams else {}
            token = take(whole, made.post(part, **fields, **more, **going_on), stream=streams)
            part += 1
            assert part < 500
    finally:
        cutting.pop()
    made.num_parts += part
    return whole


@pytest.mark.parametrize(
    ("tools", "fields", "stream"),
    [
        (True, {}, False),
        (True, {}, True),
        (True, {}, None),
        (False, {}, None),
        (True, {"stop": ["Bergen"]}, None),
        (True, {"parallel_tool_calls": False}, None),
        (False, {"max_tokens": 57}, None),
    ],
    ids=["tools", "tools-streamed", "tools-both", "text", "stop", "one-call", "max-tokens"],
)
def test_thoughts_text_and_calls_go_on(
    tmp_path: Path, cutting: list[int], tools: bool, fields: dict[str, Any], stream: bool | None
) -> None:
    folder = counting_model.make(tmp_path / "artifact", script=THOUGHTS).folder
    fields = {**fields, "tools": [TOOL]} if tools else fields
    with instances(folder, tmp_path / "store") as made:
        expected = Whole()
        assert take(expected, made.post(0, **fields), stream=False) is None
        assert expected.reasoning
        for after in (1, 7, 33):
            assert in_parts(made, cutting, after, stream=stream, **fields) == expected
        assert made.num_parts > 3, "an answer was cut: how often, is decided by how many tokens an output brings"
        assert not list((tmp_path / "store").glob("*.continuation"))  # each was used


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 60},
        {"max_tokens": 60, "temperature": 2.0, "seed": 5, "logit_bias": BIASES},
        {"max_tokens": 60, "frequency_penalty": 2.0, "repetition_penalty": 1.5, "logit_bias": BIASES},
        {
            "max_tokens": 60,
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "a",
                    "schema": {"type": "object", "properties": {"n": {"type": "array", "items": {"type": "string"}}}},
                },
            },
        },
        {"structured_outputs": {"regex": "[a-f]{20,40}(xyz|zyx){4}"}},
    ],
    ids=["plain", "seed", "penalties", "schema", "regex"],
)
def test_sampling_and_guides_go_on(
    counting_folder: Path, tmp_path: Path, cutting: list[int], fields: dict[str, Any]
) -> None:
    with instances(counting_folder, tmp_path) as made:
        expected = Whole()
        take(expected, made.post(0, **fields), stream=False)
        for after in (5, 17):
            assert in_parts(made, cutting, after, **fields) == expected


def test_a_guide_after_thoughts_goes_on(tmp_path: Path, cutting: list[int]) -> None:
    template = counting_model.CHAT_TEMPLATE + "{{ '<think>\\n' }}"
    header, script = counting_model.ASSISTANT_HEADER + "<think>\n", "So be it.\n</think>\n\nabcdefabc free text"
    made_model = counting_model.make(tmp_path / "a", script=script, script_after=header, chat_template=template)
    folder = made_model.folder
    fields: dict[str, Any] = {"structured_outputs": {"regex": "[a-f]{9}"}, "max_tokens": 60}
    with instances(folder, tmp_path / "store") as made:
        expected = Whole()
        take(expected, made.post(0, **fields), stream=False)
        for after in (1, 4):
            assert in_parts(made, cutting, after, **fields) == expected


def test_the_prompt_is_not_read_again(counting_folder: Path, tmp_path: Path, cutting: list[int]) -> None:
    fields: dict[str, Any] = {"messages": chat("x" * 300), "max_tokens": 150}
    with instances(counting_folder, tmp_path) as made:
        cutting.append(5)
        first = made.post(0, **fields).json()
        cutting.clear()
        before = made.engines[1].metrics()
        second = made.post(1, **fields, continuation=first["continuation"]).json()
        after = made.engines[1].metrics()
    num_prompt = second["usage"]["prompt_tokens"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == num_prompt
    assert after.cached_tokens - before.cached_tokens == after.prompt_tokens - before.prompt_tokens == num_prompt
    assert first["usage"]["completion_tokens"] + second["usage"]["completion_tokens"] == 150


def test_each_wrong_token_is_a_400_with_its_code(counting_folder: Path, tmp_path: Path, cutting: list[int]) -> None:
    def code(response: httpx.Response) -> Any:
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == "continuation"
        return response.json()["error"]["code"]

    fields: dict[str, Any] = {"max_tokens": 400}
    keys = tmp_path / "keys"
    keys.write_text("one: key-of-one\nother: key-of-other\n")
    keys.chmod(0o600)
    store = tmp_path / "store"
    with instances(counting_folder, store, 1) as made:
        cutting.append(5)
        token = made.post(0, **fields).json()["continuation"]
        cutting.clear()
        signer = ContinuationSigner(SECRET)
        said = signer.read(token)
        assert said is not None

        def again(token: str, **changed: Any) -> Any:
            return code(made.post(0, **{**fields, **changed}, continuation=token))

        for place in range(0, len(token), 7):  # altered bytes
            altered = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
            assert again(altered) == "continuation_invalid"
        for wrong in ("", "a", "é", token + "=", token + "A", token[:-1], "=" * 9, token.swapcase()):
            assert again(wrong) == "continuation_invalid"
        assert again(ContinuationSigner("another secret of others").token(said)) == "continuation_invalid"

        def signed(**changed: Any) -> str:
            values = {name: getattr(said, name) for name in Continuation.__struct_fields__}
            return signer.token(Continuation(**{**values, **changed}))

        assert signed() == token
        assert again(signed(expires=int(time.time()))) == "continuation_expired"
        assert again(signed(artifact="0" * 64)) == "continuation_mismatch"
        assert again(signed(key=bytes(32))) == "continuation_mismatch"
        assert again(token, messages=chat("Ho")) == "continuation_mismatch"
        assert again(token, temperature=1.0) == "continuation_mismatch"
        assert again(token, stop=["x"]) == "continuation_mismatch"
        assert again(token, structured_outputs={"regex": "a"}) == "continuation_mismatch"
        assert again(signed(name="0" * 32)) == "continuation_used"
        assert made.post(0, **fields, continuation=token).status_code == 200
        assert again(token) == "continuation_used"
    with instances(counting_folder, store, 1, api_keys=str(keys)) as made:

        def post(key: str, **more: Any) -> httpx.Response:
            body = {"model": MODEL, "messages": chat("Hi"), **fields, **more}
            headers = {"authorization": f"Bearer {key}"}
            return ask(made.apps[0], "POST", "/v1/chat/completions", json=body, headers=headers)

        cutting.append(5)
        token = post("key-of-one").json()["continuation"]
        cutting.clear()
        assert code(post("key-of-other", continuation=token)) == "continuation_mismatch"
        assert post("key-of-one", continuation=token).status_code == 200


def test_a_damaged_state_is_refused(counting_folder: Path, tmp_path: Path, cutting: list[int]) -> None:
    with instances(counting_folder, tmp_path, 1) as made:
        for damage in (lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:100], lambda data: b""):
            cutting.append(5)
            token = made.post(0, max_tokens=400).json()["continuation"]
            cutting.clear()
            (file,) = tmp_path.glob("*.continuation")
            file.write_bytes(damage(file.read_bytes()))
            refused = made.post(0, max_tokens=400, continuation=token)
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "continuation_damaged")


def test_a_request_that_is_refused_or_late_does_not_use_the_token(
    counting_folder: Path, tmp_path: Path, cutting: list[int]
) -> None:
    with instances(counting_folder, tmp_path, 1) as made:
        cutting.append(5)
        token = made.post(0, max_tokens=400).json()["continuation"]
        cutting.clear()
        engine = made.engines[0]
        submit = engine.submit

        def full(*given: Any, **options: Any) -> str:
            raise QueueFullError("full")

        engine.submit = full  # type: ignore[method-assign]
        assert made.post(0, max_tokens=400, continuation=token).status_code == 429
        engine.submit = submit  # type: ignore[method-assign]
        cutting.append(0)
        for stream in (False, True):  # the deadline passes before the first output
            with paced(engine, 0.05):
                late = made.post(0, max_tokens=400, continuation=token, stream=stream)
            assert "deadline_exceeded" in late.text
        cutting.clear()
        assert made.post(0, max_tokens=400, continuation=token).status_code == 200


def test_a_secret_without_a_store_is_refused(counting_folder: Path) -> None:
    with Engine.open(counting_folder, RUNTIME) as engine, pytest.raises(SettingsError, match="needs capsules"):
        create_app(engine, ServerSettings(continuation_secret=SECRET))


def test_without_a_secret_or_room_there_is_no_continuation(
    counting_folder: Path, tmp_path: Path, cutting: list[int]
) -> None:
    cutting.append(5)
    with instances(counting_folder, tmp_path, 1, continuation_secret=None) as made:
        answer = made.post(0, max_tokens=400).json()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert "continuation" not in answer
        refused = made.post(0, continuation="x")
        assert refused.json()["error"]["code"] == "continuation_unsupported"
    settings = ServerSettings(capsules=str(tmp_path), continuation_secret=SECRET, max_answer_seconds=60.0)
    with Engine.open(counting_folder, replace(RUNTIME, prefix_cache_bytes=0)) as engine:
        app = create_app(engine, settings)
        app.state.host.wait()
        engine.start()
        body = {"model": MODEL, "messages": chat("Hi"), "max_tokens": 400}
        answer = ask(app, "POST", "/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert "continuation" not in answer


def test_what_a_store_does_not_take_is_not_offered_and_what_it_does_not_give_is_a_503(
    counting_folder: Path, tmp_path: Path, cutting: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with instances(counting_folder, tmp_path, 1) as made:
        cutting.append(5)
        token = made.post(0, max_tokens=400).json()["continuation"]
        store = made.apps[0].state.capsules

        def fail(*given: Any) -> Any:
            raise OSError("the network is away")

        monkeypatch.setattr(store._files, "write", fail)
        monkeypatch.setattr(store._files, "read", fail)
        cut = made.post(0, max_tokens=400).json()
        assert cut["choices"][0]["finish_reason"] == "length"
        assert "continuation" not in cut
        failed = made.post(0, max_tokens=400, continuation=token)
        assert (failed.status_code, failed.json()["error"]["code"]) == (503, "continuation_unavailable")
