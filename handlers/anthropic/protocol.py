"""Anthropic's message request as types.

Every field is honoured, accepted without effect (docs/messages.md lists them), or refused by its name. Blocks and tools
that this server cannot serve are known here, so that their refusal says what they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from qwonnx.handlers.chat.sampling_fields import sampling_struct
from qwonnx.handlers.chat.tools import MAX_TOOLS, FunctionName
from qwonnx.handlers.chat.validation import Strict
from qwonnx.runtime.sampling.parameter import LARGE, Api

MAX_STOP_SEQUENCES = 16

Name = Annotated[str, Meta(min_length=1, max_length=256)]
PositiveInt = Annotated[int, Meta(ge=1, lt=LARGE)]


# Any value, so that message_request.py can refuse it with the remedy.
OnlyNull = Annotated[Any, Meta(extra_json_schema={"type": "null"})]


class _Block(Strict, kw_only=True):
    """Marks that have no effect: every beginning is cached, and text has no citations."""

    cache_control: dict[str, Any] | None = None
    citations: Any = None


class TextBlock(_Block, kw_only=True, tag_field="type", tag="text"):
    text: str


class SystemBlock(_Block, kw_only=True):
    """A text block of the system prompt, which has no others."""

    type: Literal["text"]
    text: str


class ThinkingBlock(_Block, kw_only=True, tag_field="type", tag="thinking"):
    """Reasoning of an earlier answer; its signature is not checked."""

    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(_Block, kw_only=True, tag_field="type", tag="redacted_thinking"):
    """Reasoning that only another server can read; left out."""

    data: str


class ToolUseBlock(_Block, kw_only=True, tag_field="type", tag="tool_use"):
    """A call that the assistant made in an earlier turn. The model may have made up its name."""

    id: str
    name: str
    input: dict[str, Any]
    caller: Any = None


class ImageBlock(_Block, kw_only=True, tag_field="type", tag="image"):
    source: Any = None


class DocumentBlock(_Block, kw_only=True, tag_field="type", tag="document"):
    source: Any = None
    title: Any = None
    context: Any = None


class SearchResultBlock(_Block, kw_only=True, tag_field="type", tag="search_result"):
    source: Any = None
    title: Any = None
    content: Any = None


class ToolReferenceBlock(_Block, kw_only=True, tag_field="type", tag="tool_reference"):
    """The name of a tool that a search has found; text for the model."""

    tool_name: str


ResultBlock = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock


class ToolResultBlock(_Block, kw_only=True, tag_field="type", tag="tool_result"):
    tool_use_id: str
    content: str | list[ResultBlock] | None = None
    is_error: bool | None = None


Block = (
    TextBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
)


class Message(Strict):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class ToolDefinition(Strict):
    """A tool. type: None or "custom" are the client's own tools; all others are run by Anthropic's servers."""

    name: FunctionName
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    # Without effect: all tools are told to the model, and arguments always stream.
    cache_control: dict[str, Any] | None = None
    eager_input_streaming: bool | None = None
    defer_loading: bool | None = None
    allowed_callers: list[str] | None = None
    input_examples: list[Any] | None = None


class ToolChoiceAuto(Strict, tag_field="type", tag="auto"):
    disable_parallel_tool_use: bool | None = None


class ToolChoiceAny(Strict, tag_field="type", tag="any"):
    disable_parallel_tool_use: bool | None = None


class ToolChoiceTool(Strict, tag_field="type", tag="tool"):
    name: str
    disable_parallel_tool_use: bool | None = None


class ToolChoiceNone(Strict, tag_field="type", tag="none"):
    pass


ToolChoice = ToolChoiceAuto | ToolChoiceAny | ToolChoiceTool | ToolChoiceNone


class ThinkingEnabled(Strict, tag_field="type", tag="enabled"):
    budget_tokens: PositiveInt | None = None
    display: str | None = None


class ThinkingAdaptive(Strict, tag_field="type", tag="adaptive"):
    display: str | None = None


class ThinkingBetweenTools(Strict, tag_field="type", tag="between_tools"):
    """As enabled: the template opens every answer with its reasoning."""


class ThinkingDisabled(Strict, tag_field="type", tag="disabled"):
    pass


Thinking = ThinkingEnabled | ThinkingAdaptive | ThinkingBetweenTools | ThinkingDisabled


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    schema: dict[str, Any]
    name: str | None = None


class OutputConfig(Strict):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonSchemaFormat | None = None
    task_budget: Any = None


class ContextEdit(Strict):
    type: str
    keep: Any = None


class ContextManagement(Strict):
    """Which earlier reasoning is left out; the model's template decides that."""

    edits: list[ContextEdit] | None = None


class CountTokensRequest(Strict, kw_only=True):
    """The body of POST /v1/messages/count_tokens, and the part of a message request that makes the prompt."""

    model: Name
    messages: Annotated[list[Message], Meta(extra_json_schema={"minItems": 1})]
    system: str | list[SystemBlock] | None = None
    tools: Annotated[list[ToolDefinition], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: JsonSchemaFormat | None = None  # the older place of output_config.format

    # Without effect.
    context_management: ContextManagement | None = None
    cache_control: dict[str, Any] | None = None
    betas: list[str] | None = None

    # Refused by name: see message_request.py.
    thread: OnlyNull = None
    container: OnlyNull = None
    mcp_servers: OnlyNull = None


if TYPE_CHECKING:

    class _Sampled(CountTokensRequest):
        """Sampling parameters."""
else:
    _Sampled = sampling_struct(Api.ANTHROPIC, CountTokensRequest)


class MessageRequest(_Sampled, kw_only=True):
    """The body of POST /v1/messages."""

    max_tokens: PositiveInt
    stream: bool | None = None
    stop_sequences: Annotated[list[str], Meta(max_length=MAX_STOP_SEQUENCES)] | None = None

    # Without effect: they concern Anthropic's accounts, places and prices.
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    inference_geo: str | None = None
    speed: str | None = None
    user_profile_id: str | None = None
    workspace_id: str | None = None
    diagnostics: dict[str, Any] | None = None
