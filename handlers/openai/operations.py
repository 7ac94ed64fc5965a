"""The operations of OpenAI's API."""

from __future__ import annotations

from qwonnx.handlers.http.operation import READING_REFUSALS, Operation
from qwonnx.handlers.openai.chat_objects import ChatCompletion, ChatCompletionChunk
from qwonnx.handlers.openai.chat_protocol import ChatCompletionRequest
from qwonnx.handlers.openai.errors import ErrorBody
from qwonnx.handlers.openai.models import ModelList, ModelObject
from qwonnx.handlers.openai.text_objects import TextCompletion
from qwonnx.handlers.openai.text_protocol import TextCompletionRequest
from qwonnx.handlers.openai.tokenize import DetokenizeAnswer, DetokenizeRequest, TokenizeAnswer, TokenizeRequest

OPERATIONS = (
    Operation(
        "POST",
        "/v1/chat/completions",
        "Answer a chat",
        ChatCompletion,
        ChatCompletionRequest,
        events=(ChatCompletionChunk,),
        error=ErrorBody,
    ),
    Operation(
        "POST",
        "/v1/completions",
        "Continue a text",
        TextCompletion,
        TextCompletionRequest,
        events=(TextCompletion,),
        error=ErrorBody,
    ),
    Operation("GET", "/v1/models", "The served model", ModelList, refusals=READING_REFUSALS, error=ErrorBody),
    Operation("GET", "/v1/models/{model}", "The served model", ModelObject, refusals=READING_REFUSALS, error=ErrorBody),
    Operation("POST", "/tokenize", "The tokens of a prompt", TokenizeAnswer, TokenizeRequest, error=ErrorBody),
    Operation("POST", "/detokenize", "The text of tokens", DetokenizeAnswer, DetokenizeRequest, error=ErrorBody),
)
