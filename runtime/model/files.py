"""The small files of an artifact, read and checked: tokenizer, template, sampling, end tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import Struct

from qwonnx.runtime.artifact.file_names import CHAT_TEMPLATE_FILE, GENERATION_CONFIG_FILE
from qwonnx.runtime.artifact.folder import Artifact
from qwonnx.runtime.artifact.manifest import ArtifactFileError, ModelFacts
from qwonnx.runtime.artifact.strict_json import StrictJsonError, parse_object
from qwonnx.runtime.errors import InvalidRequestError, SettingsError
from qwonnx.runtime.model.session import check_version
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.settings import DEFAULT_MAX_MODEL_LEN, RuntimeSettings
from qwonnx.runtime.text.artifact_tokenizer import open_tokenizer, read_text
from qwonnx.runtime.text.chat_template import ChatTemplate
from qwonnx.runtime.text.end_tokens import end_token_ids
from qwonnx.runtime.text.tokenizer import Tokenizer


class ModelFiles(Struct, frozen=True):
    """An opened artifact's parts."""

    artifact: Artifact
    graph: Path  # the decoder
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    default_sampling: SamplingParams
    eos_token_ids: frozenset[int]


def load(artifact: Artifact) -> ModelFiles:
    """Read the small files of an artifact.

    Raises:
        ArtifactError: a file of it is missing or malformed.
        TokenizerError, TemplateError: tokenizer.json or chat_template.jinja cannot be used.
        SessionError: the artifact needs a newer ONNX Runtime.
    """
    check_version(artifact.manifest)
    graph = artifact.file(artifact.decoder.file)
    tokenizer = open_tokenizer(artifact)
    template = None
    if artifact.has_file(CHAT_TEMPLATE_FILE):
        template = ChatTemplate(read_text(artifact, CHAT_TEMPLATE_FILE))
    config = _generation_config(artifact)
    try:
        sampling = SamplingParams.defaults_from(config)
        ends = end_token_ids(config, tokenizer)
    except InvalidRequestError as error:
        raise ArtifactFileError(f"generation_config.json of {artifact.folder} cannot be used: {error}") from error
    return ModelFiles(
        artifact=artifact,
        graph=graph,
        tokenizer=tokenizer,
        chat_template=template,
        default_sampling=sampling,
        eos_token_ids=ends,
    )


def settle_max_model_len(model: ModelFacts, settings: RuntimeSettings) -> int:
    """The setting, or by default the model's limit, at most 32,768.

    Raises:
        SettingsError: the setting is beyond the model's limit.
    """
    limit = model.max_position_embeddings
    if settings.max_model_len is None:
        return min(limit, DEFAULT_MAX_MODEL_LEN)
    if settings.max_model_len > limit:
        raise SettingsError(f"max_model_len is {settings.max_model_len}: this model was made for at most {limit}")
    return settings.max_model_len


def _generation_config(artifact: Artifact) -> dict[str, Any]:
    if not artifact.has_file(GENERATION_CONFIG_FILE):
        return {}
    try:
        return parse_object(read_text(artifact, GENERATION_CONFIG_FILE).encode())
    except StrictJsonError as error:
        raise ArtifactFileError(
            f"{GENERATION_CONFIG_FILE} of {artifact.folder} is not JSON ({error}): export the checkpoint again"
        ) from error
