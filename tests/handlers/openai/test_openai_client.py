"""The official client against a real server: the server accepts its requests, and it reads the answers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from tests.handlers.serving import MODEL, Served, chat, serving
from tests.runtime import counting_model

PROMPT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}
CALL = (
    "<tool_call>\n<function=weather>\n<parameter=city>\n{}\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
)


def expected(served: Served, text: str, num_tokens: int) -> str:
    """The answer of the counting model."""
    tokenizer = served.engine.tokenizer
    model = counting_model.CountingModel(served.engine.artifact.folder, tokenizer, 1, None)
    return tokenizer.decode(model.answer(tokenizer.encode(PROMPT.format(text)), num_tokens))


def test_an_answer_in_one_piece(served: Served) -> None:
    with served.client() as client:
        completion = client.chat.completions.create(model=MODEL, messages=chat("Hi"), max_tokens=12)
    choice = completion.choices[0]
    assert choice.message.content == expected(served, "Hi", 12)
    assert (choice.message.role, choice.finish_reason, completion.model) == ("assistant", "length", MODEL)
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 12
    assert completion.usage.prompt_tokens == len(served.engine.tokenizer.encode(PROMPT.format("Hi")))
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 12


def test_a_stream_says_the_same_piece_by_piece_and_ends_with_the_usage(served: Served) -> None:
    with served.client() as client:
        chunks = list(
            client.chat.completions.create(
                model=MODEL,
                messages=chat("Hi"),
                max_completion_tokens=12,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    assert text_of(chunks) == expected(served, "Hi", 12)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]) == 1
    assert len(chunks) > 5
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_without_include_usage_has_none(served: Served) -> None:
    with served.client() as client:
        chunks = list(client.chat.completions.create(model=MODEL, messages=chat(), max_tokens=2, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_concurrent_requests_of_the_async_client_get_the_answers_they_get_alone(served: Served) -> None:
    async def ask(client: openai.AsyncOpenAI, number: int) -> str:
        messages, length = chat(f"Question {number}"), 10 + number
        if number % 2:
            completion = await client.chat.completions.create(model=MODEL, messages=messages, max_tokens=length)
            return completion.choices[0].message.content or ""
        stream = await client.chat.completions.create(model=MODEL, messages=messages, max_tokens=length, stream=True)
        return text_of([chunk async for chunk in stream])

    async def main() -> list[str]:
        async with served.async_client() as client:
            return await asyncio.gather(*(ask(client, number) for number in range(12)))

    answers = asyncio.run(main())
    assert answers == [expected(served, f"Question {number}", 10 + number) for number in range(12)]


def test_stop_strings_end_the_answer_before_them(served: Served) -> None:
    whole = expected(served, "Hi", 40)
    stop = whole[7:9]
    with served.client() as client:
        completion = client.chat.completions.create(model=MODEL, messages=chat("Hi"), max_tokens=40, stop=["#", stop])
    assert completion.choices[0].message.content == whole[: whole.index(stop)]
    assert completion.choices[0].finish_reason == "stop"


def test_a_stop_string_may_be_as_long_as_the_document_says(served: Served) -> None:
    with served.client() as client:
        long = client.chat.completions.create(model=MODEL, messages=chat("Hi"), max_tokens=5, stop=["x" * 1024])
    assert long.choices[0].message.content == expected(served, "Hi", 5)


def test_a_seed_makes_sampling_repeatable_and_extensions_are_honoured(served: Served) -> None:
    def ask(client: openai.OpenAI, seed: int, **extensions: Any) -> str | None:
        completion = client.chat.completions.create(
            model=MODEL, messages=chat(), max_tokens=24, temperature=2, seed=seed, extra_body=extensions
        )
        return completion.choices[0].message.content

    with served.client() as client:
        assert ask(client, 1) == ask(client, 1)
        assert ask(client, 1, top_k=1) == expected(served, "Hello", 24)
        stop_token = served.engine.tokenizer.encode(expected(served, "Hello", 3)[2])
        assert ask(client, 1, top_k=1, stop_token_ids=stop_token) == expected(served, "Hello", 2)


def test_content_parts_developer_messages_and_harmless_fields_are_understood(served: Served) -> None:
    parts: Any = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    with served.client() as client:
        completion = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts, "name": "Ada"}],
            max_tokens=3,
            user="u",
            metadata={"a": "b"},
            store=False,
            service_tier="auto",
            n=1,
            response_format={"type": "text"},
            logprobs=False,
        )
    assert completion.usage is not None
    text = "<|im_start|>system\nBe brief.<|im_end|>\n" + PROMPT.format("Hi")
    assert completion.usage.prompt_tokens == len(served.engine.tokenizer.encode(text))


def test_models_are_listed_and_found(served: Served) -> None:
    with served.client() as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        assert client.models.retrieve(MODEL).id == MODEL
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("another/model")
    with served.http() as raw:
        assert raw.get("/v1/models/").json() == raw.get("/v1/models").json()


def test_reasoning_and_tool_calls_are_separated_from_content(tmp_path: Path) -> None:
    script = "<think>\nHe asks.\n</think>\n\nI look it up.\n\n" + CALL.format("Oslo") + "\n" + CALL.format("Rom")
    folder = counting_model.make(tmp_path / "artifact", script=script).folder
    with serving(folder) as served, served.client() as client:
        whole = client.chat.completions.create(model=MODEL, messages=chat(), tools=[WEATHER]).choices[0]
        assert whole.finish_reason == "tool_calls"
        assert whole.message.content == "I look it up."
        assert whole.message.model_dump()["reasoning_content"].strip() == "He asks."
        calls = [call for call in whole.message.tool_calls or () if call.type == "function"]
        assert [json.loads(call.function.arguments) for call in calls] == [
            {"city": "Oslo", "days": 3},
            {"city": "Rom", "days": 3},
        ]
        assert len({call.id for call in calls}) == 2

        chunks = list(client.chat.completions.create(model=MODEL, messages=chat(), tools=[WEATHER], stream=True))
        deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        opened = [delta for delta in deltas if delta.id is not None]
        assert [delta.index for delta in opened] == [0, 1]
        assert all(delta.function is not None and delta.function.name == "weather" for delta in opened)
        for call in opened:
            functions = [delta.function for delta in deltas if delta.index == call.index and delta.function is not None]
            said = "".join(function.arguments or "" for function in functions)
            assert said == calls[call.index].function.arguments
            assert len(functions) > 5
        assert text_of(chunks) == "I look it up."
        assert chunks[-1].choices[0].finish_reason == "tool_calls"

        one = client.chat.completions.create(
            model=MODEL, messages=chat(), tools=[WEATHER], parallel_tool_calls=False
        ).choices[0]
        assert (one.finish_reason, len(one.message.tool_calls or ())) == ("tool_calls", 1)
        none = client.chat.completions.create(
            model=MODEL, messages=chat(), tools=[WEATHER], tool_choice="none"
        ).choices[0]
        assert (none.finish_reason, none.message.tool_calls) == ("stop", None)
        assert CALL.format("Oslo") in (none.message.content or "")

        # The answer is sent back unchanged, with the tool's result.
        back: Any = [*chat(), whole.message.model_dump(), {"role": "tool", "tool_call_id": "x", "content": "sunny"}]
        again = client.chat.completions.create(model=MODEL, messages=back, max_tokens=1)
        assert again.choices[0].finish_reason == "length"


def test_thinking_is_counted_and_can_be_switched_off_by_either_name(tmp_path: Path) -> None:
    template = counting_model.CHAT_TEMPLATE + "{{ '' if enable_thinking is undefined or enable_thinking else '!!!' }}"
    script = "<think>\nHe asks.\n</think>\n\nYes."
    folder = counting_model.make(tmp_path / "artifact", script=script, chat_template=template).folder
    with serving(folder) as served, served.client() as client:

        def usage(**fields: Any) -> openai.types.CompletionUsage:
            completion: Any = client.chat.completions.create(model=MODEL, messages=chat(), max_tokens=99, **fields)
            assert completion.usage is not None
            found: openai.types.CompletionUsage = completion.usage
            return found

        thinking = usage()
        assert thinking.completion_tokens_details is not None
        spoken = len(served.engine.tokenizer.encode("\n\nYes.")) + 1  # and the end token
        assert thinking.completion_tokens_details.reasoning_tokens == thinking.completion_tokens - spoken
        off = (usage(reasoning_effort="none"), usage(extra_body={"chat_template_kwargs": {"enable_thinking": False}}))
        assert [answer.prompt_tokens - thinking.prompt_tokens for answer in off] == [3, 3]


def test_answers_name_the_model_they_come_from(served: Served, tmp_path: Path) -> None:
    def fingerprints(server: Served) -> set[str | None]:
        with server.client() as client:
            whole = client.chat.completions.create(model=MODEL, messages=chat(), max_tokens=2)
            stream = client.chat.completions.create(model=MODEL, messages=chat(), max_tokens=2, stream=True)
            return {whole.system_fingerprint, *(chunk.system_fingerprint for chunk in stream)}

    with serving(counting_model.make(tmp_path / "artifact", num_pairs=2).folder) as other:
        ours, theirs = fingerprints(served), fingerprints(other)
    assert len(ours) == len(theirs) == 1
    assert ours != theirs
    assert all(name is not None and name.startswith("fp_") for name in ours | theirs)


def test_a_long_argument_comes_as_it_is_written(tmp_path: Path) -> None:
    """Each token has its own event, the first one too, whatever the argument's length."""
    city = "Llanfair pwll " * 20
    folder = counting_model.make(tmp_path / "artifact", script=CALL.format(city)).folder
    with serving(folder) as served, served.client() as client:
        fields: Any = {"model": MODEL, "messages": chat(), "tools": [WEATHER], "stream": True}
        chunks = list(client.chat.completions.create(**fields, stream_options={"include_usage": True}))
        tokens = [served.engine.tokenizer.decode([token]) for token in served.engine.tokenizer.encode(city)]
    usage = chunks.pop().usage
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    texts = [call.function.arguments or "" for call in calls if call.function is not None]
    assert texts[0] == ""  # with the name
    assert "".join(tokens[:2]).startswith(texts[1].removeprefix('{"city": "'))
    assert usage is not None
    assert len(tokens) < len(texts) < usage.completion_tokens
    assert json.loads("".join(texts)) == {"city": city, "days": 3}


@pytest.mark.parametrize("stream", [False, True])
def test_max_tokens_in_a_call_leaves_its_arguments_open(tmp_path: Path, stream: bool) -> None:
    folder = counting_model.make(tmp_path / "artifact", script="So.\n" + CALL.format("Oslo <b>")).folder
    with serving(folder) as served, served.client() as client:

        def ask(max_tokens: int) -> tuple[str, str, str | None]:
            """Content, arguments, finish reason."""
            fields: Any = {"model": MODEL, "messages": chat(), "tools": [WEATHER], "max_tokens": max_tokens}
            if not stream:
                choice = client.chat.completions.create(**fields).choices[0]
                calls = [call for call in choice.message.tool_calls or () if call.type == "function"]
                arguments = "".join(call.function.arguments for call in calls)
                return choice.message.content or "", arguments, choice.finish_reason
            chunks = list(client.chat.completions.create(**fields, stream=True))
            deltas = [call.function for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
            said = "".join(delta.arguments or "" for delta in deltas if delta is not None)
            return text_of(chunks), said, chunks[-1].choices[0].finish_reason

        content, whole, reason = ask(200)
        assert (content, json.loads(whole), reason) == ("So.", {"city": "Oslo <b>", "days": 3}, "tool_calls")
        seen = set()
        for max_tokens in range(1, 200, 2):
            content, arguments, reason = ask(max_tokens)
            if reason != "length":
                break
            assert whole.startswith(arguments)
            assert content == "So." if arguments else "So.\n<tool_call>".startswith(content[:15])
            seen.add(arguments)
        assert {"{", '{"city": "', '{"city": "Oslo <b>", "days": 3'} <= seen


def test_the_clients_own_stream_and_its_messages_are_understood(tmp_path: Path) -> None:
    folder = counting_model.make(tmp_path / "artifact", script="I look it up.\n\n" + CALL.format("Oslo")).folder
    with serving(folder) as served, served.client() as client:
        with client.chat.completions.stream(model=MODEL, messages=chat(), tools=[WEATHER]) as stream:
            kinds = {event.type for event in stream}
            streamed = stream.get_final_completion().choices[0].message
        assert {"content.delta", "content.done", "tool_calls.function.arguments.done"} <= kinds
        assert streamed.content == "I look it up."
        assert streamed.tool_calls is not None
        assert json.loads(streamed.tool_calls[0].function.arguments) == {"city": "Oslo", "days": 3}
        created = client.chat.completions.create(model=MODEL, messages=chat(), tools=[WEATHER]).choices[0].message
        for message in (streamed, streamed.model_dump(), created):  # most programs send back the object itself
            history: Any = [*chat(), message, {"role": "tool", "tool_call_id": "x", "content": "sunny"}]
            assert client.chat.completions.create(model=MODEL, messages=history, tools=[WEATHER]).choices


def test_a_failing_step_is_a_500_or_an_error_event_and_the_server_goes_on(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with served.client() as client:
        failing = chat(f"x{counting_model.FAILING_TEXT}")
        with pytest.raises(openai.InternalServerError) as refusal:
            client.chat.completions.create(model=MODEL, messages=failing, max_tokens=3)
        assert refusal.value.code == "internal_error"
        with pytest.raises(openai.APIError) as cut:
            list(client.chat.completions.create(model=MODEL, messages=failing, max_tokens=3, stream=True))
        assert cut.value.code == "internal_error"
        assert caplog.text.count("failed: ONNX Runtime failed to run a step") == 2
        assert client.chat.completions.create(model=MODEL, messages=chat(), max_tokens=3).choices


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_a_second_turn_reads_only_what_the_first_did_not(served: Served) -> None:
    system: Any = {"role": "system", "content": "You are a box of many words."}
    first = [system, *chat("What is in it?")]
    with served.client() as client:
        answer = client.chat.completions.create(model=MODEL, messages=first, max_tokens=6)
        said: Any = {"role": "assistant", "content": answer.choices[0].message.content}
        second = client.chat.completions.create(model=MODEL, messages=[*first, said, *chat("And?")], max_tokens=6)
        other = client.chat.completions.create(model=MODEL, messages=[system, *chat("Why?")], max_tokens=6)
    turns = "<|im_start|>{}\n{}<|im_end|>"
    beginnings = [turns.format("system", system["content"])]
    beginnings.append(beginnings[0] + "\n" + turns.format("user", "What is in it?"))
    lengths = [len(served.engine.tokenizer.encode(text)) for text in beginnings]
    cached = [
        completion.usage.prompt_tokens_details.cached_tokens
        for completion in (answer, second, other)
        if completion.usage is not None and completion.usage.prompt_tokens_details is not None
    ]
    assert cached == [0, lengths[1], lengths[0]]
