"""Structured output through the official client: an answer has the requested form, whatever the model prefers."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, Field

from tests.handlers.cli.commands import error_line, qwonnx
from tests.handlers.functions.lambda_service import event, json_of, running
from tests.handlers.functions.test_aws_lambda import HANDLER
from tests.handlers.serving import MODEL, Served, chat, serving, until
from tests.runtime import counting_model


class Verdict(BaseModel):
    label: Literal["cat", "dog"]
    score: int = Field(ge=0, le=99)
    tags: list[Literal["a", "b"]] = Field(max_length=2)
    note: str | None = Field(max_length=3)


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Oslo", "Rome"]
    days: int = Field(ge=1, le=9)
    metric: bool


RANDOM: Any = {"model": MODEL, "messages": chat(), "temperature": 2, "max_tokens": 420}
SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {"name": "v", "schema": Verdict.model_json_schema(), "strict": True},
}
CALL = "<tool_call>\n<function=weather>\n<parameter=city>\n{}\n</parameter>\n<parameter=days>\n{}\n</parameter>\n"
CALL += "</function>\n</tool_call>"


def weather(**function: Any) -> Any:
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": "weather", "parameters": parameters, **function}}


def only_call(message: Any) -> Any:
    (call,) = message.tool_calls
    return call


def test_parse_gives_the_clients_own_type(served: Served) -> None:
    with served.client() as client:
        for seed in range(4):
            completion = client.chat.completions.parse(**RANDOM, seed=seed, response_format=Verdict)
            assert isinstance(completion.choices[0].message.parsed, Verdict)
            assert completion.choices[0].finish_reason == "stop"


def test_a_stream_has_the_form_too_and_is_the_same_answer(served: Served) -> None:
    with served.client() as client:
        with client.chat.completions.stream(**RANDOM, seed=1, response_format=Verdict) as stream:
            streamed = stream.get_final_completion().choices[0].message
        whole = client.chat.completions.parse(**RANDOM, seed=1, response_format=Verdict).choices[0].message
    assert isinstance(streamed.parsed, Verdict)
    assert streamed.content == whole.content


def test_an_answer_that_is_cut_short_says_so(served: Served) -> None:
    with served.client() as client, pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**RANDOM | {"max_tokens": 5}, response_format=Verdict)


def test_a_json_object_and_nothing_after_it(tmp_path: Path) -> None:
    folder = counting_model.make(tmp_path / "artifact", script='{"a": [1, {"b": null}]} That is all.').folder
    with serving(folder) as served, served.client() as client:
        plain = client.chat.completions.create(model=MODEL, messages=chat()).choices[0]
        bound = client.chat.completions.create(
            model=MODEL, messages=chat(), response_format={"type": "json_object"}
        ).choices[0]
    assert plain.message.content == '{"a": [1, {"b": null}]} That is all.'
    assert (bound.message.content, bound.finish_reason) == ('{"a": [1, {"b": null}]}', "stop")


def test_thoughts_come_first_and_are_free(tmp_path: Path) -> None:
    template = counting_model.CHAT_TEMPLATE + "{{ '<think>\\n' }}"
    script = 'Is it {"cat"}?\n</think>\n\n{"label": "cat", "score": 7, "tags": [], "note": null} Yes.'
    after = counting_model.ASSISTANT_HEADER + "<think>\n"
    folder = counting_model.make(tmp_path / "a", script=script, script_after=after, chat_template=template).folder
    with serving(folder) as served, served.client() as client:
        completion = client.chat.completions.parse(model=MODEL, messages=chat(), response_format=Verdict)
    message = completion.choices[0].message
    assert message.parsed == Verdict(label="cat", score=7, tags=[], note=None)
    assert (message.model_extra or {})["reasoning_content"] == 'Is it {"cat"}?'
    assert message.content == '{"label": "cat", "score": 7, "tags": [], "note": null}'


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"regex": "[a-z]{2}-[0-9]{2}"}, "[a-z]{2}-[0-9]{2}"),
        ({"choice": ["yes", "no"]}, "yes|no"),
        ({"grammar": 'start: "<" WORD ">"\nWORD: /[a-z]{1,4}/'}, "<[a-z]{1,4}>"),
        ({"json": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 1}}, r"\[\s*\w+\s*\]"),
        ({"json": '{"enum": [1, 22]}'}, "1|22"),
    ],
    ids=str,
)
def test_structured_outputs_are_what_they_are_elsewhere(served: Served, asked: dict[str, Any], pattern: str) -> None:
    with served.client() as client:
        for seed in range(3):
            completion = client.chat.completions.create(**RANDOM, seed=seed, extra_body={"structured_outputs": asked})
            assert re.fullmatch(pattern, completion.choices[0].message.content or "")


def test_a_tool_must_be_called_with_arguments_of_its_schema(served: Served) -> None:
    tools: Any = [openai.pydantic_function_tool(Weather), openai.pydantic_function_tool(Verdict, name="judge")]
    kinds = set()
    with served.client() as client:
        for seed in range(6):
            choice = client.chat.completions.parse(
                **RANDOM, seed=seed, tools=tools, tool_choice="required", parallel_tool_calls=False
            ).choices[0]
            call = only_call(choice.message)
            assert isinstance(call.function.parsed_arguments, Weather | Verdict)
            assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
            kinds.add(call.function.name)
        named: Any = {"type": "function", "function": {"name": "judge"}}
        for seed in range(3):
            message = client.chat.completions.parse(**RANDOM, seed=seed, tools=tools, tool_choice=named)
            assert isinstance(only_call(message.choices[0].message).function.parsed_arguments, Verdict)
    assert kinds == {"Weather", "judge"}


def test_with_auto_a_strict_tools_call_is_put_right_and_text_is_left_alone(tmp_path: Path) -> None:
    script = "I look.\n\n" + CALL.format("Oslo", "three")
    folder = counting_model.make(tmp_path / "artifact", script=script).folder
    with serving(folder) as served, served.client() as client:

        def ask(**fields: Any) -> Any:
            return client.chat.completions.create(model=MODEL, messages=chat(), **fields).choices[0]

        loose = ask(tools=[weather()])
        assert json.loads(loose.message.tool_calls[0].function.arguments) == {"city": "Oslo", "days": "three"}
        strict = ask(tools=[weather(strict=True)], temperature=1, seed=1, parallel_tool_calls=False, max_tokens=300)
        assert strict.message.content == "I look."
        arguments = json.loads(strict.message.tool_calls[0].function.arguments)
        assert arguments["city"] == "Oslo"
        assert isinstance(arguments["days"], int)
        # The model is not told that a tool is strict.
        assert ask(tools=[weather()], max_tokens=1) == ask(tools=[weather(strict=True)], max_tokens=1)


def test_a_schema_beside_tools_lets_the_model_choose(tmp_path: Path) -> None:
    answer = '{"label": "cat", "score": 7, "tags": [], "note": null}'
    for number, script in enumerate((answer, CALL.format("Oslo", 3))):
        folder = counting_model.make(tmp_path / str(number), script=script).folder
        with serving(folder) as served, served.client() as client:
            completion = client.chat.completions.create(
                model=MODEL, messages=chat(), tools=[weather(strict=False)], response_format=SCHEMA
            )
        message = completion.choices[0].message
        if number:
            assert json.loads(only_call(message).function.arguments) == {"city": "Oslo", "days": 3}
        else:
            assert message.content == answer


def test_a_bias_by_token_id(served: Served) -> None:
    with served.client() as client:
        completion = client.chat.completions.create(
            model=MODEL, messages=chat(), max_tokens=5, temperature=0, logit_bias={str(ord("q")): 100}
        )
    assert completion.choices[0].message.content == "qqqqq"


def test_a_schema_that_cannot_be_followed_is_a_400_with_the_reason(served: Served) -> None:
    schema = {"type": "array", "uniqueItems": True}
    with served.client() as client:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="uniqueItems") as refusal:
                client.chat.completions.create(
                    model=MODEL,
                    messages=chat(),
                    stream=stream,
                    response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
                )
            assert refusal.value.param == "response_format.json_schema.schema"
            assert refusal.value.code == "invalid_guide"
        tool = weather(strict=True)
        tool["function"]["parameters"]["properties"]["city"] = schema
        with pytest.raises(openai.BadRequestError, match="uniqueItems") as refusal:
            client.chat.completions.create(model=MODEL, messages=chat(), tools=[tool])
        assert refusal.value.param == "tools"
        assert client.chat.completions.create(model=MODEL, messages=chat(), max_tokens=2).choices


@pytest.mark.parametrize("stream", [False, True])
def test_a_form_whose_client_leaves_is_compiled_no_further(served: Served, stream: bool) -> None:
    """The check alone would take longer; on a busy machine one of three tries is enough."""
    kept = served.engine._grammars._kept
    seconds: list[float] = []
    for first in (97, 101, 103):
        endless = {"allOf": [{"type": "integer", "multipleOf": number} for number in (first, 89, 83, 79)]}
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": endless}}
        request = {"model": MODEL, "messages": chat(), "stream": stream, "response_format": form}
        with served.http() as client, pytest.raises(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json=request, timeout=0.25)
        began = time.monotonic()
        until(lambda: kept.num_running == 0)
        seconds.append(time.monotonic() - began)
        if seconds[-1] < 0.4:
            return
    assert min(seconds) < 0.4


def test_a_function_answers_so_too(counting_folder: Path) -> None:
    body = {**RANDOM, "seed": 1, "response_format": SCHEMA}
    with running(counting_folder, HANDLER) as instance:
        service = instance.service
        answer = json_of(service.invoke(event("POST", "/v1/chat/completions", body)))
        Verdict.model_validate_json(answer["choices"][0]["message"]["content"])
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "text"}}}
        assert json_of(service.invoke(event("POST", "/v1/chat/completions", body)), 400)["error"]["code"]


def test_the_command_line_takes_a_schema_or_an_expression(counting_folder: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"enum": ["cat", "dog"]}))
    ask = ("generate", counting_folder, "--chat", "Hi", "--temperature", 1, "--seed", 1)
    assert json.loads(qwonnx(*ask, "--json-schema", schema).stdout) in ("cat", "dog")
    assert re.fullmatch("[0-9]{3}x\n", qwonnx(*ask, "--regex", "[0-9]{3}x").stdout)
    assert "unclosed" in error_line(qwonnx(*ask, "--regex", "("))
    assert "either" in error_line(qwonnx(*ask, "--regex", "a", "--json-schema", schema))
    schema.write_text("[1]")
    assert "not a JSON schema" in error_line(qwonnx(*ask, "--json-schema", schema))
