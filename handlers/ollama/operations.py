"""The operations of Ollama's API that do something."""

from __future__ import annotations

from qwonnx.handlers.http.operation import READING_REFUSALS, Operation
from qwonnx.handlers.ollama.errors import ErrorBody
from qwonnx.handlers.ollama.objects import LINES, ChatAnswer, ModelList, ModelPage, TextAnswer, Version
from qwonnx.handlers.ollama.protocol import ChatRequest, GenerateRequest, ShowRequest

OPERATIONS = (
    Operation(
        "POST",
        "/api/chat",
        "Answer a chat, in lines unless stream is false",
        ChatAnswer,
        ChatRequest,
        (ChatAnswer, ErrorBody),
        LINES,
        error=ErrorBody,
    ),
    Operation(
        "POST",
        "/api/generate",
        "Continue a text, in lines unless stream is false",
        TextAnswer,
        GenerateRequest,
        (TextAnswer, ErrorBody),
        LINES,
        error=ErrorBody,
    ),
    Operation("POST", "/api/show", "The served model", ModelPage, ShowRequest, error=ErrorBody),
    Operation("GET", "/api/tags", "The served model", ModelList, refusals=READING_REFUSALS, error=ErrorBody),
    Operation("GET", "/api/ps", "The served model", ModelList, refusals=READING_REFUSALS, error=ErrorBody),
    Operation("GET", "/api/version", "The installed version", Version, refusals=(), error=ErrorBody),
)
