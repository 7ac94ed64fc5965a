"""The multi-token-prediction head of a checkpoint, which transformers does not read, built from transformers' layers.

    e = norm(embedding of token t + 1), h = norm(the model's final state at t), both [T, H]
    y = norm(layer(fc([e, h])))     one layer of gated full attention over all positions so far, and its feed-forward
    logits of token t + 2 = y times the model's own head

The final state is the one after the model's last norm, as in vLLM and SGLang. Positions are those of t, because only
differences of rotary angles matter. Checkpoints store the layer's experts fused (Qwen 3.6) or one tensor each (Qwen
3.5).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

from qwonnx.export.checkpoint.formats.stored_weights import StoredWeights
from qwonnx.export.errors import VerificationError

PREFIX = "mtp."


class MtpHead(nn.Module):
    """One draft head. Names of parameters are the checkpoint's, after its prefix; experts are fused.

    Args:
        text_model: transformers' text model of this head, which gives the layer's class and configuration.

    Raises:
        VerificationError: the text model has no full-attention layer.
    """

    def __init__(self, text_model: Any) -> None:
        super().__init__()
        config = text_model.config
        if "full_attention" not in config.layer_types:
            raise VerificationError("the model has no full-attention layer, and its MTP head needs one")
        hidden, eps = config.hidden_size, config.rms_norm_eps
        layer_class, norm_class = type(text_model.layers[0]), type(text_model.norm)
        self.fc = nn.Linear(2 * hidden, hidden, bias=False)
        self.layers = nn.ModuleList([layer_class(config, config.layer_types.index("full_attention"))])
        self.norm = norm_class(hidden, eps=eps)
        self.pre_fc_norm_embedding = norm_class(hidden, eps=eps)
        self.pre_fc_norm_hidden = norm_class(hidden, eps=eps)
        self._config = config
        # In a list, so that torch does not make it part of the head.
        self._rotary = [text_model.rotary_emb]

    def forward(self, embedded: Tensor, final: Tensor, position_ids: Tensor) -> Tensor:
        """States [1, T - 1, H] to multiply with the model's head; the one at t predicts token t + 2.

        Args:
            embedded: [1, T, H], the model's input: embeddings of tokens and pictures.
            final: [1, T, H], the model's states after its last norm.
            position_ids: int64 [3, 1, T], of time, height and width.
        """
        both = [self.pre_fc_norm_embedding(embedded[:, 1:]), self.pre_fc_norm_hidden(final[:, :-1])]
        x = self.fc(torch.cat(both, -1))
        mask = create_causal_mask(self._config, x, attention_mask=None, past_key_values=None)
        angles = self._rotary[0](x, position_ids[..., :-1])
        result: Tensor = self.norm(self.layers[0](x, position_embeddings=angles, attention_mask=mask))
        return result


def load_mtp_head(text_model: Any, stored: StoredWeights) -> MtpHead | None:
    """The head in float32, ready to run; None if the checkpoint has none.

    Raises:
        CheckpointError: a weight is missing, or has the wrong shape.
        VerificationError: the head has more than one layer.
    """
    names = [name for name in stored.names if name.startswith(PREFIX)]
    if not names:
        return None
    if any(name.startswith(f"{PREFIX}layers.1.") for name in names):
        raise VerificationError("the checkpoint's MTP head has several layers, and only one is supported")
    with torch.device("meta"):
        head = MtpHead(text_model)
    weights = {name: _read(stored, PREFIX + name, tuple(empty.shape)) for name, empty in head.named_parameters()}
    head.load_state_dict(weights, assign=True)
    return head.eval()


def _read(stored: StoredWeights, name: str, shape: tuple[int, ...]) -> Tensor:
    """A weight in float32; experts that are stored one tensor each are fused."""
    module, _, kind = name.rpartition(".")
    if name in stored.names or not module.endswith(".mlp.experts"):
        weight = stored.open(name, shape)
        return weight.read(0, weight.num_rows).float().view(shape)
    _, num_rows, num_columns = shape
    parts = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
    fused = torch.empty(shape)
    for index, expert in enumerate(fused):
        for part, rows in zip(parts, expert.chunk(len(parts)), strict=True):
            rows.copy_(_read(stored, f"{module}.{index}.{part}.weight", (num_rows // len(parts), num_columns)))
    return fused
