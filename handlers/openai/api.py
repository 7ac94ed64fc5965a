"""OpenAI's API as an Api record: its paths, its routes and its errors.

POST /v1/chat/completions              chat_completions.py
POST /v1/completions                   text_completions.py
GET  /v1/models, /v1/models/{model}    models.py
POST /tokenize, /detokenize            tokenize.py
"""

from __future__ import annotations

from starlette.routing import Route

from qwonnx.handlers.http.api import Api, imported
from qwonnx.handlers.openai import chat_completions, errors, models

_TOKENS = "qwonnx.handlers.openai.tokenize"
_TEXTS = "qwonnx.handlers.openai.text_completions"

OPENAI = Api(
    prefix="/v1",
    routes=(
        Route("/v1/chat/completions", chat_completions.create_chat_completion, methods=["POST"]),
        Route("/v1/completions", imported(_TEXTS, "create_completion"), methods=["POST"]),
        Route("/v1/embeddings", imported(_TEXTS, "create_embeddings"), methods=["POST"]),
        Route("/tokenize", imported(_TOKENS, "tokenize"), methods=["POST"]),
        Route("/detokenize", imported(_TOKENS, "detokenize"), methods=["POST"]),
        Route("/v1/models", models.list_models),
        Route("/v1/models/{model:path}", models.retrieve_model),
    ),
    error_response=errors.response,
    main=chat_completions.create_chat_completion,
    hint="use /v1/chat/completions, /v1/completions or /v1/models; a base URL ends in /v1",
    operations="qwonnx.handlers.openai.operations",
)
