"""Baking: compute the states of system prompts once and store them in the artifact, for all processes that open it.

Also: read typical texts once and store how often each expert was needed.

A baked prefix is the beginning of a chat as an endpoint renders it, so both use the same code: text/chat_prompt.py
finds the end of the system turn.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.cache.baked_prefixes import prefix_files, prefix_path, write_prefix
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.errors import InvalidRequestError, SessionError, SettingsError
from qwonnx.runtime.model import expert_uses
from qwonnx.runtime.model import files as model_files
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.settings import DEFAULT_MAX_MODEL_LEN, RuntimeSettings
from qwonnx.runtime.text.chat_prompt import SystemPrompt, system_beginning

_ONE_TOKEN = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
# Of a part of a text, and of its continuation. Of a prompt, the last layer computes only the last token: its experts
# are counted in what the model writes.
_TEXT_TOKENS, _WRITTEN_TOKENS = 512, 32
_NO_LIMIT = 1 << 62  # bytes of snapshots: a prompt needs all of its snapshots to the end


@dataclass(frozen=True, slots=True)
class BakedPrefix:
    """A baked prefix in the artifact; is_new says whether bake() has just written it."""

    path: Path
    num_tokens: int
    num_bytes: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class BakedUses:
    """The file of expert uses, and the number of tokens that it is from."""

    path: Path
    num_tokens: int


def bake(
    folder: str | os.PathLike[str],
    prompts: Sequence[SystemPrompt],
    settings: RuntimeSettings | None = None,
    *,
    on_tokens: Callable[[int, int], None] = lambda done, total: None,
) -> list[BakedPrefix]:
    """Compute the states of system prompts and write them into an artifact; existing ones are not computed again.

    Args:
        folder: the artifact.
        prompts: see parse_prompt.
        settings: of the engine that computes the states.
        on_tokens: called with the number of tokens done and the total, over all prompts.

    Returns:
        one for each prompt, in their order; equal prompts share a file.

    Raises:
        ArtifactError, TokenizerError, SettingsError: the artifact cannot be opened.
        InvalidRequestError: a prompt is too long, or the template refuses it.
        SessionError: the model fails.
        CapsuleError: the artifact's folder of baked prefixes is full.
        OSError: a file cannot be written.
    """
    artifact = open_artifact(folder)
    if not artifact.manifest.stage.is_whole:
        raise SettingsError(f"{folder} is a stage, and prefixes are baked into whole models only: use capsules")
    model = model_files.load(artifact)
    limit = model.artifact.manifest.model.max_position_embeddings
    beginnings = [system_beginning(model, prompt.messages, prompt.tools) for prompt in prompts]
    longest = max(map(len, beginnings), default=0)
    if longest > limit - 2:
        raise InvalidRequestError(f"a prompt has {longest} tokens and at most {limit - 2} fit: shorten it")
    there = {file.path for file in prefix_files(model.artifact, limit) if file.capsule is not None}
    places = {prefix_path(model.artifact, tokens): tokens for tokens in beginnings}
    missing = {path: tokens for path, tokens in places.items() if path not in there}
    if missing:
        settings = dataclasses.replace(
            settings or RuntimeSettings(),
            max_num_seqs=1,
            max_model_len=max(longest + 2, min(limit, DEFAULT_MAX_MODEL_LEN)),
            cache_bytes=None,  # room for one sequence; a server's limit does not apply
            prefix_cache_bytes=_NO_LIMIT,
        )
        done, total = 0, sum(map(len, missing.values()))
        with Engine.open(model.artifact, settings) as engine:
            for path, tokens in missing.items():
                write_prefix(path, _states_after(engine, tokens, partial(_report, on_tokens, done, total)))
                done += len(tokens)
    return [
        BakedPrefix(path, len(tokens), path.stat().st_size, is_new=path in missing)
        for path, tokens in ((prefix_path(model.artifact, tokens), tokens) for tokens in beginnings)
    ]


def bake_expert_uses(
    folder: str | os.PathLike[str],
    texts: Sequence[str],
    settings: RuntimeSettings | None = None,
    *,
    on_tokens: Callable[[int, int], None] = lambda done, total: None,
) -> BakedUses:
    """Read texts, count how often each expert is needed, and write the counts into an artifact.

    Args:
        folder: the artifact.
        texts: whole ones, such as conversations with their special tokens, from which parts are cut that fit a step.
        settings: of the engine that reads them.
        on_tokens: called with the number of tokens done and the total.

    Raises:
        ArtifactError, TokenizerError, SettingsError, NativeKernelsError: the artifact cannot be opened.
        InvalidRequestError: the texts are empty, or the model has no experts on native kernels.
        SessionError: the model fails.
        OSError: the file cannot be written.
    """
    settings = dataclasses.replace(
        settings or RuntimeSettings(), max_num_seqs=1, max_model_len=None, cache_bytes=None, prefix_cache_bytes=0
    )
    with Engine.open(folder, settings) as engine:
        written = min(_WRITTEN_TOKENS, engine.max_model_len // 2)
        params = dataclasses.replace(_ONE_TOKEN, max_tokens=written)
        size = min(engine.max_model_len - written, _TEXT_TOKENS)
        tokens = [engine.tokenizer.encode(text) for text in texts]
        parts = [each[first : first + size] for each in tokens for first in range(0, len(each), size)]
        done, total = 0, sum(map(len, parts))
        if not total:
            raise InvalidRequestError("the texts are empty: give texts like those that the model will read and write")
        for part in parts:
            on_tokens(done, total)
            outputs: list[RequestOutput] = []
            engine.submit(part, params, outputs.append)
            while not outputs or outputs[-1].finish_reason is None:
                engine.step()
            if outputs[-1].finish_reason is FinishReason.ERROR:
                raise SessionError(f"the model failed ({outputs[-1].error}): export the checkpoint again")
            done += len(part)
        on_tokens(done, total)
        uses = engine.expert_uses()
        if not uses:
            raise InvalidRequestError("this model has no experts on native kernels, so there is nothing to count")
        return BakedUses(expert_uses.save(engine.artifact, uses), total)


def _report(on_tokens: Callable[[int, int], None], done_before: int, total: int, done: int) -> None:
    on_tokens(done_before + done, total)


def _states_after(engine: Engine, token_ids: list[int], on_tokens: Callable[[int], None]) -> bytes:
    """The capsule of these tokens. Only this function drives the engine."""
    outputs: list[RequestOutput] = []
    read = 0
    # A state is kept only inside a prompt, so append one token; the states before it do not depend on it.
    engine.submit([*token_ids, token_ids[-1]], _ONE_TOKEN, outputs.append, snapshot_at=[len(token_ids)])
    while not outputs:
        on_tokens(read)
        engine.step()
        read = min(read + engine.settings.max_num_batched_tokens, len(token_ids))
    if outputs[-1].finish_reason is FinishReason.ERROR:
        raise SessionError(f"the model failed ({outputs[-1].error}): export the checkpoint again")
    on_tokens(len(token_ids))
    data = engine.save_capsule(token_ids)
    assert data is not None, "the budget has no limit"
    return data
