"""Merges adapters into transformers' model with peft: the reference of what an export merges itself.

peft warns of tensors that it does not load, and of tied weights that part. Here the former is an error, and the latter
part before peft sees them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwonnx.export.errors import VerificationError, first_line

# Names of the text model in a model with pictures, and in the text model alone, which is compared.
_WITH_PICTURES, _ALONE = "model.language_model.", "model."
_FACTORS = (".lora_A.", ".lora_embedding_A")


def merge_adapters(model: Any, folders: Sequence[Path]) -> Any:
    """The model with adapters merged into it, one after the other.

    Raises:
        VerificationError: peft is not installed, or it does not load all of an adapter.
    """
    if not folders:
        return model
    try:
        import peft
    except ImportError as error:
        raise VerificationError("peft merges the adapters of a comparison: pip install peft") from error
    for folder in folders:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = _merged(model, folder)
        except VerificationError:
            raise
        except Exception as error:  # exceptions of peft and of its libraries
            raise VerificationError(
                f"peft {peft.__version__} does not load {folder.name} ({first_line(error)}): another version wrote it,"
                " or it is of another base"
            ) from error
    return model.eval()


def _merged(model: Any, folder: Path) -> Any:
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights

    config: Any = PeftConfig.from_pretrained(str(folder))
    saved = load_peft_weights(str(folder), device="cpu")
    state = {name.replace(_WITH_PICTURES, _ALONE): tensor for name, tensor in saved.items()}
    if state.keys() != saved.keys():
        _rename(config, state)
    config.inference_mode = True
    if not config.ensure_weight_tying:
        _part_tied_weights(model, state)
    wrapped = get_peft_model(model, config)
    result: Any = set_peft_model_state_dict(wrapped, state)
    lost = [*result.unexpected_keys, *(name for name in result.missing_keys if ".lora_" in name)]
    if lost:
        raise VerificationError(f"peft does not load {lost[0]} of {folder.name}: it is of another base")
    return wrapped.merge_and_unload()


def _rename(config: Any, state: Mapping[str, Tensor]) -> None:
    """Let a configuration of a model with pictures name the same modules of the text model alone."""
    targets = {
        name.removeprefix("base_model.model.").partition(factor)[0]
        for name in state
        for factor in _FACTORS
        if factor in name
    }
    config.target_modules = {name for name in targets if not name.endswith((".experts", ".base_layer", ".mlp.gate"))}
    config.layers_to_transform = config.layers_pattern = config.exclude_modules = None
    if config.target_parameters:
        config.target_parameters = [name.replace(_WITH_PICTURES, _ALONE) for name in config.target_parameters]
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = getattr(config, name) or {}
        setattr(config, name, {_renamed_pattern(pattern): value for pattern, value in patterns.items()})


def _renamed_pattern(pattern: str) -> str:
    return pattern.replace(_WITH_PICTURES, _ALONE).replace(r"model\.language_model\.", r"model\.")


def _part_tied_weights(model: Any, state: Mapping[str, Tensor]) -> None:
    """Give the head a weight of its own if the adapter trains the head or the embedding, which the model ties."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is embedding.weight and any("lm_head." in name or "embed_tokens." in name for name in state):
        head.weight = torch.nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
