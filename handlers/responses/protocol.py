"""The body of POST /v1/responses and of POST /v1/responses/input_tokens as types.

All fields of OpenAI's request are known here, so that a misspelt one is refused. There are three kinds:
- honoured: with a precise type;
- without effect here (user, metadata, ...): typed, accepted, named in docs/responses.md;
- not supported (previous_response_id, ...): accepted only with a neutral value, see request.py.

Items and tools stay raw JSON: the type of each decides how items.py and tools.py read it. Some types are wider than
what is accepted, so that a refusal can name the remedy; their JSON schemas are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Raw

from qwonnx.handlers.chat.sampling_fields import sampling_struct
from qwonnx.handlers.chat.tools import FunctionName
from qwonnx.handlers.chat.validation import Strict
from qwonnx.handlers.effort import Effort
from qwonnx.handlers.openai.generation_fields import Name, PositiveInt
from qwonnx.handlers.responses.items import (
    GivenCall,
    GivenCallOutput,
    GivenCustomCall,
    GivenCustomCallOutput,
    GivenMessage,
    GivenReasoning,
    ItemReference,
)
from qwonnx.handlers.responses.tools import (
    HOSTED_TOOL,
    AllowedTools,
    ChosenTool,
    CustomTool,
    FunctionTool,
    NamespaceTool,
)
from qwonnx.runtime.sampling.parameter import Api
from qwonnx.runtime.sampling.params import MAX_LOGPROBS

ENCRYPTED_REASONING = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"
INCLUDES = (
    ENCRYPTED_REASONING,
    LOGPROBS,
    # They concern hosted tools and pictures, which are not served: there is nothing to include.
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
)

_ITEMS = (
    GivenMessage,
    GivenReasoning,
    GivenCall,
    GivenCallOutput,
    GivenCustomCall,
    GivenCustomCallOutput,
    ItemReference,
)
_TOOLS = (FunctionTool, CustomTool, NamespaceTool)
REFERRED = (*_ITEMS, *_TOOLS, ChosenTool, AllowedTools)
"""Structs to which JSON schemas of this module refer by name: a document with these schemas needs theirs."""


def _references(structs: Sequence[type]) -> list[dict[str, Any]]:
    return [{"$ref": f"#/components/schemas/{struct.__name__}"} for struct in structs]


_TOOL_CHOICES = ({"enum": ["none", "auto", "required", None]}, *_references((ChosenTool, AllowedTools)))

RawItem = Annotated[Raw, Meta(extra_json_schema={"anyOf": _references(_ITEMS)})]
RawTool = Annotated[Raw, Meta(extra_json_schema={"anyOf": [*_references(_TOOLS), HOSTED_TOOL]})]
Input = str | Annotated[list[RawItem], Meta(extra_json_schema={"minItems": 1})]
ToolChoice = Annotated[str | dict[str, Any] | None, Meta(extra_json_schema={"allOf": [{"anyOf": _TOOL_CHOICES}]})]
Include = Annotated[str, Meta(extra_json_schema={"enum": INCLUDES})]

# Any value, so that request.py can refuse it with the remedy, but for those of the schema.
OnlyNull = Annotated[Any, Meta(extra_json_schema={"type": "null"})]
OnlyFalse = Annotated[Any, Meta(extra_json_schema={"enum": [False, None]})]
OnlyDisabled = Annotated[Any, Meta(extra_json_schema={"enum": ["disabled", None]})]
OnlyEmpty = Annotated[Any, Meta(extra_json_schema={"enum": [[], None]})]


class Reasoning(Strict):
    """effort: "none" switches thinking off, any other effort switches it on.

    context: "all_turns" keeps the thoughts of all turns in the prompt, if the template can do that; "current_turn"
        keeps those since the last user message.
    summary, generate_summary: without effect; thoughts are always given as text and as a summary.
    """

    effort: Effort | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    mode: Literal["standard"] | None = None


class TextFormat(Strict, tag_field="type", tag="text"):
    pass


class JsonObjectFormat(Strict, tag_field="type", tag="json_object"):
    pass


class JsonSchemaFormat(Strict, tag_field="type", tag="json_schema", omit_defaults=True):
    name: FunctionName
    schema: dict[str, Any] | bool
    description: str | None = None
    strict: bool | None = None  # the schema is always followed


class TextOptions(Strict):
    format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None  # without effect


class StreamOptions(Strict):
    include_obfuscation: bool = False


class _Conversation(Strict):
    """What a prompt is made of. input: a text, or items."""

    input: Input
    instructions: str | None = None
    tools: list[RawTool] | None = None
    tool_choice: ToolChoice = None  # tools.py checks it
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    truncation: OnlyDisabled = None

    # They need stored responses: refused.
    previous_response_id: OnlyNull = None
    conversation: OnlyNull = None


class InputTokensRequest(_Conversation):
    """The body of POST /v1/responses/input_tokens."""

    model: Name | None = None
    personality: OnlyNull = None


if TYPE_CHECKING:

    class _Sampled(_Conversation):
        """Sampling parameters. An answer repeats these two."""

        temperature: float | None = None
        top_p: float | None = None
else:
    _Sampled = sampling_struct(Api.RESPONSES, _Conversation)


class ResponsesRequest(_Sampled, kw_only=True):
    """The body of POST /v1/responses."""

    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    include: list[Include] | None = None
    max_output_tokens: PositiveInt | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None

    # Ours, as in chat completions.
    thinking_budget: PositiveInt | None = None
    continuation: Annotated[str, Meta(max_length=1024)] | None = None

    # Without effect here: they concern OpenAI's accounts, storage, caches, prices and hosted tools.
    store: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    client_metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    max_tool_calls: PositiveInt | None = None

    # Not supported; request.py lists the neutral values.
    background: OnlyFalse = None
    background_options: OnlyNull = None
    prompt: OnlyNull = None
    context_management: OnlyEmpty = None
    moderation: OnlyNull = None
    image: OnlyNull = None
    access_programs: OnlyNull = None
