"""config.json -> ModelConfig: the geometry of the text model, and how its weights are stored, checked.

Published checkpoints nest the text model under `text_config`; text-only ones are flat. Both are read. config_fields.py
lists the known fields and refuses others. Nothing here opens a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwonnx.export.checkpoint.architecture import MOE_ARCHITECTURES, architecture_of, model_type_of
from qwonnx.export.checkpoint.config_fields import FIXED, Fields, odd_fields
from qwonnx.export.checkpoint.foreign_formats import recognised_files, refuse_adapter
from qwonnx.export.checkpoint.formats.modelopt_config import SIDE_FILE, of_side_file
from qwonnx.export.checkpoint.formats.source_quantization import SourceQuantization, parse_quantization
from qwonnx.export.checkpoint.gguf.config_document import config_document
from qwonnx.export.checkpoint.gguf.files import is_gguf
from qwonnx.export.checkpoint.gguf.model import open_gguf
from qwonnx.export.errors import CheckpointError, ConfigError
from qwonnx.runtime.artifact.object_fields import CORRECT, MAX_SIZE
from qwonnx.runtime.artifact.strict_json import StrictJsonError, quoted, read_object

CONFIG_NAME = "config.json"

LAYER_TYPES = ("linear_attention", "full_attention")

_MAX_CONFIG_BYTES = 4 << 20  # a published one has 3 kB; lists of unquantised modules can grow to about 100 kB
_MAX_LAYERS = 1 << 10
_MAX_WEIGHT = 1 << 40  # elements of one weight; the largest published one has 2^32

_ROPE_FIELDS = frozenset(
    {
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "factor",
        "mrope_interleaved",
        "mrope_section",
        "mscale",
        "mscale_all_dim",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "rope_theta",
        "rope_type",
        "truncate",
        "type",  # the older name of rope_type
    }
)


@dataclass(frozen=True, slots=True)
class RopeParameters:
    """Rotary embedding, as in `rope_parameters`; the fields after rope_theta matter only under "yarn".

    attention_factor multiplies cos and sin; None means 0.1 ln(factor) + 1. beta_fast and beta_slow are turns over
    original_max_position_embeddings positions; truncate rounds the ends of YaRN's ramp to whole frequencies.
    """

    rope_type: str  # "default" or "yarn"
    rope_theta: float
    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None
    beta_fast: float
    beta_slow: float
    truncate: bool


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The text model; fields have config.json's names if it has them. Sizes are numbers of elements.

    In a dense model, counts of experts and sizes of their projections are 0; in a mixture of experts, intermediate_size
    is 0. Under YaRN max_position_embeddings is the extended context, factor times the original one.
    """

    architecture: str
    model_type: str
    hidden_size: int
    num_hidden_layers: int
    layer_types: tuple[str, ...]  # "linear_attention" or "full_attention" for each layer
    vocab_size: int  # rows of the embedding, with padding
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rotary_dim: int  # number of rotated dimensions, the first of a head
    rope_theta: float
    mrope_section: tuple[int, int, int]  # frequencies of the axes time, height, width
    rms_norm_eps: float
    max_position_embeddings: int
    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_conv_kernel_dim: int
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    intermediate_size: int
    tie_word_embeddings: bool
    rope: RopeParameters
    quantization: SourceQuantization | None  # how the checkpoint stores quantised weights
    dtype: str | None  # of most weights that are not quantised, "bfloat16"; tensors may differ. None: it is not said


def load_config(folder: Path) -> ModelConfig:
    """Read and check a checkpoint's config.json, or what stands for it in the first file of a model in GGUF.

    Raises:
        UnsupportedModelError: the architecture is not one of Qwen 3.5's.
        ConfigError: the file is missing or malformed, or a field has a value of the wrong type, out of range, or that
            changes the maths.
    """
    if is_gguf(folder):
        return parse_config(gguf_document(folder), where=str(folder))
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise _no_config(folder)
    config = load_config_file(path)
    if config.quantization is None and (described := _side_quantization(folder / SIDE_FILE)):
        where = str(folder / SIDE_FILE)
        return replace(config, quantization=parse_quantization({"quantization_config": described}, {}, where))
    return config


def _side_quantization(path: Path) -> dict[str, Any]:
    """What ModelOpt's side file says of the weights; empty if there is none, or none that can be read."""
    try:
        return of_side_file(read_object(path, _MAX_CONFIG_BYTES)) if path.is_file() else {}
    except StrictJsonError:  # refused later, as config.json does not describe the weights either
        return {}


def gguf_document(path: Path) -> dict[str, Any]:
    """A config.json from the first file of a model in GGUF; raises what load_config raises."""
    return config_document(open_gguf(path))


def _no_config(folder: Path) -> CheckpointError:
    """The error of a folder without config.json; it says what the folder is, if that can be seen."""
    found = (*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin"))
    weights = [path.name for path in found if not path.name.startswith("adapter")]
    try:
        refuse_adapter(folder, has_weights=bool(weights))
    except CheckpointError as error:
        return error
    if weights:
        return ConfigError(f"{folder} has no {CONFIG_NAME}: copy the one that was saved with {weights[0]} into it")
    known = recognised_files(folder)
    return ConfigError(
        f"{folder} has no {CONFIG_NAME}: give a folder in Hugging Face layout"
        if known is None
        else f"{folder} has no {CONFIG_NAME}, and {known}"
    )


def load_config_file(path: Path) -> ModelConfig:
    """Read and check a config.json that lies anywhere; raises what load_config raises."""
    try:
        return parse_config(read_object(path, _MAX_CONFIG_BYTES), where=str(path))
    except StrictJsonError as error:
        raise ConfigError(f"{path} is malformed ({error}): {CORRECT}") from error
    except RecursionError as error:  # an object that parses may still be too deep to compare
        raise ConfigError(f"{path} is malformed (nested too deeply): {CORRECT}") from error


def parse_config(document: Mapping[str, Any], where: str = CONFIG_NAME) -> ModelConfig:
    """ModelConfig of a parsed config.json; `where` names it in errors.

    Raises:
        UnsupportedModelError, ConfigError: see load_config.
    """
    text = document["text_config"] if document.get("text_config") is not None else document
    if not isinstance(text, dict):
        raise ConfigError(f"{where}: text_config is not an object: {CORRECT}")
    architecture = architecture_of(document, text, where)
    model_type = model_type_of(document, text, architecture, where)
    _check_fixed(document, where)
    _check_fixed(text, where)
    odd = odd_fields(text)
    if odd:
        raise ConfigError(
            f"{where} has fields that may change the model and are unknown here ({', '.join(map(quoted, odd[:4]))}):"
            " upgrade qwonnx, or remove them if they do not matter"
        )
    fields = Fields(text, where)
    num_layers = fields.size("num_hidden_layers", at_most=_MAX_LAYERS)
    head_dim = fields.size("head_dim")
    max_positions = fields.size("max_position_embeddings", at_least=2)
    rope = Fields(_rope_object(fields), f"{where}: rope_parameters")
    rotary_dim = _rotary_dim(fields, rope, head_dim)
    parameters = _rope_parameters(fields, rope, max_positions)
    if parameters.rope_type == "yarn":
        extended = int(parameters.factor * parameters.original_max_position_embeddings)
        if extended > MAX_SIZE:
            raise rope.error("factor", f"at most {MAX_SIZE} over original_max_position_embeddings")
        max_positions = max(max_positions, extended)
    is_moe = architecture in MOE_ARCHITECTURES
    if not is_moe and fields.values.get("num_experts"):
        raise ConfigError(f"{where}: {architecture} has no experts, but num_experts is set: check the architecture")
    config = ModelConfig(
        architecture=architecture,
        model_type=model_type,
        hidden_size=fields.size("hidden_size"),
        num_hidden_layers=num_layers,
        layer_types=_layer_types(fields, num_layers),
        vocab_size=fields.size("vocab_size", at_least=2),
        num_attention_heads=fields.size("num_attention_heads"),
        num_key_value_heads=fields.size("num_key_value_heads"),
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        rope_theta=parameters.rope_theta,
        mrope_section=_mrope_section(rope, rotary_dim),
        rms_norm_eps=fields.number("rms_norm_eps", default=1e-6),
        max_position_embeddings=max_positions,
        linear_num_key_heads=fields.size("linear_num_key_heads"),
        linear_num_value_heads=fields.size("linear_num_value_heads"),
        linear_key_head_dim=fields.size("linear_key_head_dim"),
        linear_value_head_dim=fields.size("linear_value_head_dim"),
        linear_conv_kernel_dim=fields.size("linear_conv_kernel_dim", at_least=2, at_most=64),
        num_experts=fields.size("num_experts") if is_moe else 0,
        num_experts_per_tok=fields.size("num_experts_per_tok") if is_moe else 0,
        moe_intermediate_size=fields.size("moe_intermediate_size") if is_moe else 0,
        shared_expert_intermediate_size=fields.size("shared_expert_intermediate_size") if is_moe else 0,
        intermediate_size=0 if is_moe else fields.size("intermediate_size"),
        tie_word_embeddings=_tied(document, text, where),
        rope=parameters,
        quantization=parse_quantization(document, text, where),
        dtype=_dtype(document, text),
    )
    _check_divisions(config, where)
    _check_products(config, where)
    return config


def _check_fixed(values: Mapping[str, Any], where: str) -> None:
    for name, (allowed, remedy) in FIXED.items():
        value = values.get(name, allowed[0])
        # `==` alone would let 1 stand for true and 0 for false.
        if not any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in allowed):
            raise ConfigError(f"{where}: {name} is {quoted(value)}, which changes the model: {remedy}")


def _tied(document: Mapping[str, Any], text: Mapping[str, Any], where: str) -> bool:
    found = {
        Fields(values, where).flag("tie_word_embeddings", default=False)
        for values in (document, text)
        if values.get("tie_word_embeddings") is not None
    }
    if len(found) > 1:
        raise ConfigError(f"{where}: tie_word_embeddings differs between the model and its text_config: correct one")
    return found.pop() if found else False


def _dtype(document: Mapping[str, Any], text: Mapping[str, Any]) -> str | None:
    """The text model's, by its present or its older name. Only plans depend on it, so any value is accepted."""
    named = (values.get(name) for values in (text, document) for name in ("dtype", "torch_dtype"))
    return next((value.removeprefix("torch.") for value in named if isinstance(value, str)), None)


def _layer_types(fields: Fields, num_layers: int) -> tuple[str, ...]:
    given = fields.values.get("layer_types")
    if given is None:
        interval = fields.size("full_attention_interval", at_most=_MAX_LAYERS, default=4)
        return tuple(LAYER_TYPES[(layer + 1) % interval == 0] for layer in range(num_layers))
    if not isinstance(given, list) or any(kind not in LAYER_TYPES for kind in given):
        raise fields.error("layer_types", f"a list of {' and '.join(LAYER_TYPES)}")
    if len(given) != num_layers:
        raise ConfigError(f"{fields.where}: layer_types has {len(given)} entries for {num_layers} layers: {CORRECT}")
    return tuple(given)


def _rope_object(fields: Fields) -> Mapping[str, Any]:
    """`rope_parameters`, or the older `rope_scaling`, with the two fields that older files keep outside it."""
    present = [fields.values[name] for name in ("rope_parameters", "rope_scaling") if fields.values.get(name)]
    if any(not isinstance(values, dict) for values in present):
        raise ConfigError(f"{fields.where}: rope_parameters is not an object: {CORRECT}")
    if len(present) == 2 and present[0] != present[1]:
        raise ConfigError(f"{fields.where} has both rope_parameters and rope_scaling, which differ: remove one")
    rope = dict(present[0]) if present else {}
    for name in ("rope_theta", "partial_rotary_factor"):
        outer = fields.values.get(name)
        if outer is not None and rope.setdefault(name, outer) != outer:
            raise ConfigError(f"{fields.where}: {name} differs between the model and rope_parameters: correct one")
    unknown = sorted(name for name in rope.keys() - _ROPE_FIELDS if rope[name] is not None)
    if unknown:
        raise ConfigError(
            f"{fields.where}: rope_parameters has unknown fields ({', '.join(map(quoted, unknown[:4]))}): remove them"
        )
    return rope


def _rotary_dim(fields: Fields, rope: Fields, head_dim: int) -> int:
    share = rope.number("partial_rotary_factor", default=0.25)
    rotary_dim = int(head_dim * share)
    if share > 1 or rotary_dim < 2 or rotary_dim % 2:
        raise ConfigError(
            f"{fields.where}: partial_rotary_factor {share:g} of head_dim {head_dim} gives {rotary_dim} rotary"
            f" dimensions, which must be even and at least 2: {CORRECT}"
        )
    return rotary_dim


def _rope_parameters(fields: Fields, rope: Fields, max_positions: int) -> RopeParameters:
    rope_type = rope.values.get("rope_type", rope.values.get("type", "default"))
    if rope_type not in ("default", "yarn"):
        raise ConfigError(f"{fields.where}: rope_type {quoted(rope_type)} is not supported: use default or yarn")
    if not rope.flag("mrope_interleaved", default=True):
        raise ConfigError(
            f"{fields.where}: mrope_interleaved is false, which changes the model: only true is supported"
        )
    theta = rope.number("rope_theta", above=1.0)
    if rope_type == "default":
        if rope.number("factor", default=1.0) != 1.0:
            raise ConfigError(f"{rope.where}: factor needs rope_type yarn: set it, or remove factor")
        return RopeParameters("default", theta, 1.0, max_positions, None, 32.0, 1.0, truncate=True)
    return RopeParameters(
        rope_type="yarn",
        rope_theta=theta,
        factor=rope.number("factor"),
        original_max_position_embeddings=rope.size("original_max_position_embeddings", default=max_positions),
        attention_factor=_attention_factor(rope),
        beta_fast=rope.number("beta_fast", default=32.0),
        beta_slow=rope.number("beta_slow", default=1.0),
        truncate=rope.flag("truncate", default=True),
    )


def _attention_factor(rope: Fields) -> float | None:
    """The given factor, or the one that follows from mscale and mscale_all_dim (DeepSeek's form of YaRN)."""
    if rope.values.get("attention_factor") is not None:
        return rope.number("attention_factor")
    if not (rope.values.get("mscale") and rope.values.get("mscale_all_dim")):
        return None
    growth = 0.1 * max(math.log(rope.number("factor")), 0.0)
    return (rope.number("mscale") * growth + 1) / (rope.number("mscale_all_dim") * growth + 1)


def _mrope_section(rope: Fields, rotary_dim: int) -> tuple[int, int, int]:
    section = rope.values.get("mrope_section", [11, 11, 10])
    if (
        not isinstance(section, list)
        or len(section) != 3
        or any(isinstance(size, bool) or not isinstance(size, int) or size < 0 for size in section)
    ):
        raise rope.error("mrope_section", "three integers")
    # Height takes the frequencies 1, 4, 7, ... and width 2, 5, 8, ...: each index must exist.
    if sum(section) != rotary_dim // 2 or any(axis + 3 * (section[axis] - 1) >= rotary_dim // 2 for axis in (1, 2)):
        raise ConfigError(
            f"{rope.where}: mrope_section {section} does not share out the {rotary_dim // 2} frequencies"
            f" of a head: {CORRECT}"
        )
    return section[0], section[1], section[2]


def _check_divisions(config: ModelConfig, where: str) -> None:
    for whole, part in (
        ("num_attention_heads", "num_key_value_heads"),
        ("linear_num_value_heads", "linear_num_key_heads"),
    ):
        if getattr(config, whole) % getattr(config, part):
            raise ConfigError(
                f"{where}: {whole} {getattr(config, whole)} is not a multiple of {part} {getattr(config, part)}:"
                f" {CORRECT}"
            )
    if config.num_experts_per_tok > config.num_experts:
        raise ConfigError(
            f"{where}: num_experts_per_tok {config.num_experts_per_tok} is more than num_experts {config.num_experts}:"
            f" {CORRECT}"
        )


def _check_products(config: ModelConfig, where: str) -> None:
    """Refuse a weight with too many elements: each size may be sane and their product may not fit 64 bits."""
    for names in (
        ("vocab_size", "hidden_size"),
        ("num_attention_heads", "head_dim", "hidden_size"),
        ("linear_num_key_heads", "linear_key_head_dim", "hidden_size"),
        ("linear_num_value_heads", "linear_value_head_dim", "hidden_size"),
        ("linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim"),  # the recurrent state
        ("num_experts", "moe_intermediate_size", "hidden_size"),
        ("shared_expert_intermediate_size", "hidden_size"),
        ("intermediate_size", "hidden_size"),
    ):
        if math.prod(getattr(config, name) for name in names) > _MAX_WEIGHT:
            raise ConfigError(f"{where}: {' x '.join(names)} is more than any weight has: {CORRECT}")
