"""OpenAI's chat completion request as types.

All fields of OpenAI's request are known here, so that a misspelt one is refused. There are three kinds:
- honoured: with a precise type;
- without effect here (user, metadata, ...): typed, accepted, named in docs/http-api.md;
- not supported (logprobs, n, ...): accepted only with a neutral value, see chat_request.py.

Fields marked "ours" are extensions that other servers of open models share.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from qwonnx.handlers.chat.tools import FunctionName, Tools
from qwonnx.handlers.chat.validation import Strict
from qwonnx.handlers.effort import Effort
from qwonnx.handlers.openai.generation_fields import GenerationFields, PositiveInt
from qwonnx.runtime.sampling.params import MAX_LOGPROBS


class CacheControl(Strict):
    """Anthropic's mark for its cache; here every beginning is cached."""

    type: str
    ttl: str | None = None


class TextPart(Strict, tag_field="type", tag="text"):
    text: str
    cache_control: CacheControl | None = None


class RefusalPart(Strict, tag_field="type", tag="refusal"):
    """A refusal in an earlier answer; ordinary text for the model."""

    refusal: str


class _UnsupportedPart(Strict):
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    video_url: Any = None


class ImagePart(_UnsupportedPart, tag_field="type", tag="image_url"):
    pass


class AudioPart(_UnsupportedPart, tag_field="type", tag="input_audio"):
    pass


class FilePart(_UnsupportedPart, tag_field="type", tag="file"):
    pass


class VideoPart(_UnsupportedPart, tag_field="type", tag="video_url"):
    pass


# Any value, so that chat_request.py can refuse it with the remedy, but for those of the schema.
OnlyNull = Annotated[Any, Meta(extra_json_schema={"type": "null"})]
OnlyFalse = Annotated[Any, Meta(extra_json_schema={"enum": [False, None]})]
OnlyText = Annotated[Any, Meta(extra_json_schema={"enum": [["text"], None]})]
OnlyEmpty = Annotated[Any, Meta(extra_json_schema={"enum": [[], None]})]
OnlyNone = Annotated[Any, Meta(extra_json_schema={"enum": ["none", None]})]

Part = TextPart | RefusalPart | ImagePart | AudioPart | FilePart | VideoPart
Content = str | list[Part]


class CalledFunction(Strict):
    """A function that was called. The model may have made up its name, and may have been cut in its arguments."""

    name: str
    arguments: str
    parsed_arguments: Any = None  # OpenAI's client adds this when it parses `arguments`; same content


class MessageToolCall(Strict):
    """A call that the assistant made in an earlier turn."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None  # clients keep it when they join streamed deltas


class _Message(Strict, kw_only=True):
    """Fields of every message that have no effect: clients send them to other servers too."""

    cache_control: CacheControl | None = None
    extra: Any = None  # qwen-agent's own notes
    id: str | None = None


class SystemMessage(_Message, kw_only=True, tag_field="role", tag="system"):
    content: Content
    name: str | None = None


class DeveloperMessage(_Message, kw_only=True, tag_field="role", tag="developer"):
    """OpenAI's newer name of the system message."""

    content: Content
    name: str | None = None


class UserMessage(_Message, kw_only=True, tag_field="role", tag="user"):
    content: Content
    name: str | None = None


class AssistantMessage(_Message, kw_only=True, tag_field="role", tag="assistant"):
    content: Content | None = None
    name: str | None = None
    reasoning_content: str | None = None  # ours
    reasoning: str | None = None  # vLLM's name of it
    tool_calls: list[MessageToolCall] | None = None
    # Answers have these, as null or empty, and clients send answers back unchanged.
    refusal: str | None = None
    audio: Any = None
    annotations: list[Any] | None = None
    function_call: Any = None
    parsed: Any = None  # OpenAI's client adds this when it parses `content`; same content


class ToolMessage(_Message, kw_only=True, tag_field="role", tag="tool"):
    content: Content
    tool_call_id: str | None = None  # qwen-agent sends none
    name: str | None = None


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class NamedFunction(Strict):
    name: FunctionName


class NamedTool(Strict):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class TextFormat(Strict, tag_field="type", tag="text"):
    pass


class JsonObjectFormat(Strict, tag_field="type", tag="json_object"):
    pass


class JsonSchema(Strict):
    name: FunctionName
    schema: dict[str, Any] | bool
    description: str | None = None
    strict: bool | None = None  # the schema is always followed


class JsonSchemaFormat(Strict, tag_field="type", tag="json_schema"):
    json_schema: JsonSchema


class ChatTemplateKwargs(Strict):
    enable_thinking: bool | UnsetType = UNSET
    preserve_thinking: bool | UnsetType = UNSET
    add_vision_id: bool | UnsetType = UNSET


class ChatCompletionRequest(GenerationFields, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(extra_json_schema={"minItems": 1})]
    max_completion_tokens: PositiveInt | None = None
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    reasoning_effort: Effort | None = None

    # Ours.
    chat_template_kwargs: ChatTemplateKwargs | None = None
    continuation: Annotated[str, Meta(max_length=1024)] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    thinking_budget: PositiveInt | None = None
    timings: bool | None = None

    # Without effect here: they concern OpenAI's accounts, storage, caches and prices.
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    moderation: None = None
    cache_control: CacheControl | None = None

    # Not supported; chat_request.py lists the neutral values.
    store: OnlyFalse = None
    modalities: OnlyText = None
    audio: OnlyNull = None
    prediction: OnlyNull = None
    web_search_options: OnlyNull = None
    functions: OnlyEmpty = None
    function_call: OnlyNone = None
