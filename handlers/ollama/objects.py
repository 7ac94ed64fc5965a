"""Ollama's answers as types. A stream is one object a line; the last one is done and has the counts."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

LINES = "application/x-ndjson"  # content type of a stream

DoneReason = Literal["stop", "length", "load"]


class FunctionCall(msgspec.Struct):
    name: str
    arguments: dict[str, Any]
    index: int


class Call(msgspec.Struct):
    function: FunctionCall


class AnswerMessage(msgspec.Struct):
    content: str
    thinking: str | UnsetType = UNSET
    tool_calls: list[Call] | UnsetType = UNSET
    role: Literal["assistant"] = "assistant"


class _Answer(msgspec.Struct, kw_only=True):
    """Durations are in nanoseconds."""

    model: str
    created_at: str
    done: bool
    done_reason: DoneReason | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET


class ChatAnswer(_Answer, kw_only=True):
    message: AnswerMessage


class TextAnswer(_Answer, kw_only=True):
    response: str
    thinking: str | UnsetType = UNSET


class Details(msgspec.Struct):
    format: str = "onnx"
    family: str = "qwen3.5"
    families: list[str] = msgspec.field(default_factory=lambda: ["qwen3.5"])
    parent_model: str = ""
    parameter_size: str = ""
    quantization_level: str = ""


class ModelEntry(msgspec.Struct):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class ModelList(msgspec.Struct):
    models: list[ModelEntry]


class ModelPage(msgspec.Struct):
    """The answer of /api/show."""

    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str
    template: str
    license: str = ""
    modelfile: str = ""
    parameters: str = ""


class Version(msgspec.Struct):
    version: str
