# mypy: ignore-errors
"""A check of schemathesis: a request that is valid by the document is refused for a reason of this list, or not at all.

schemathesis imports this file in its own environment (SCHEMATHESIS_HOOKS), without this project's packages.
"""

from __future__ import annotations

import re

import schemathesis

# What a message says, by what the schema of a body cannot say.
REASONS = {
    "the chat template takes no such conversation": (
        r"No user query found in messages\.",
        r".* is missing: send the answer or its tool_calls",
    ),
    "a field of the API is known and not supported": (
        r".* is not supported.*",
        r".* is of type \w+: send text",
        r"tools\[\d+\]\.type is .*, a tool of Anthropic's servers: .*",
        r"this server gives no continuations: .*",
    ),
    "fields contradict each other": (
        r"stream_options needs stream: .*",
        r"top_logprobs needs logprobs: .*",
        r"continue_final_message needs .*",
        r"there is a prompt and there are messages: .*",
        r"prompt is missing: .*",
        r"tool_choice\S* .*",
        r"two tools are named .*",
        r"structured_outputs has \d+ forms .*",
    ),
    "a form cannot be followed": (r"structured_outputs\.\w+ .*", r".* cannot be followed .*", r".* allows no value.*"),
    "a whole number is written as 1.0": (
        r"\S+ is invalid: expected 'int.*', got 'float'",
        r"prompt\[\d+\] is neither a text nor a list of token ids",
    ),
    "a number is beyond what can be computed": (
        r"top_p is 0: .*",
        r"repetition_penalty is \S+: give .*",
        r"logit_bias is invalid: expected 'int', got 'str'",
    ),
    "a text is not JSON": (r"arguments of a tool call are .*: send an object's JSON text",),
    "a text is empty or too long": (
        r"the prompt is empty: .*",
        r"input is empty: .*",
        r"a stop string .*",
        r"messages is invalid: .*'null'",
    ),
    "the server does not have it": (
        r"there is no model .*",
        r"token id \d+ is not one of .*",
        r"input\[\d+\] refers to .*, and this server does not have it: .*",
    ),
    "the prompt does not fit": (r"the prompt has \d+ tokens and at most .*",),
}
_STATED = re.compile("|".join(pattern for patterns in REASONS.values() for pattern in patterns), re.DOTALL)


class UnstatedRefusal(AssertionError):
    """A valid request is refused for a reason that is not in the list."""


@schemathesis.check
def refusal_is_stated(ctx, response, case) -> None:
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code not in (400, 404):
        return
    message = message_of(response.json())
    if not _STATED.fullmatch(message):
        raise UnstatedRefusal(f"{response.status_code}: {message}")


def message_of(body) -> str:
    """The message of an error in the form of any API."""
    error = body.get("error", body)
    return error["message"] if isinstance(error, dict) else error
