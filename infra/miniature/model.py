"""The miniature for training: text model, vision tower and multi-token-prediction head, with their losses.

Names of parameters are those of a published checkpoint, except that the head's experts are fused here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infra.miniature.fused import cross_entropy
from infra.miniature.layers import DecoderLayer, Layout, RMSNorm, Routing
from infra.miniature.packing import Batch
from infra.miniature.vision import VisionTower

# The last projection of each block of the text model.
_BLOCK_OUTPUTS = ("out_proj.weight", "o_proj.weight", "down_proj", "down_proj.weight")

# Weight in the routers' losses of tokens that predict an answer's token: most tokens are in questions, and experts that
# only questions use would be idle while the model answers.
ANSWER_WEIGHT = 4.0


@dataclass(frozen=True, slots=True)
class Losses:
    """Means over the learnt tokens, and the hits from which exact match follows.

    Attributes:
        main: the next token's cross entropy.
        mtp: that of the token after it; zero if the head was not run.
        balance: 1 if every expert has its share, up to E / K; the mean over layers.
        z: the mean square of the routers' log-normalisers.
        hits: bool [learnt], whether the next token was the likeliest; empty while training.
        mtp_hits: bool [learnt tokens with two tokens before them], the same for the head.
        load: float [layers, E], the share of choices times E, weighted as for balance: 1 is fair.
    """

    main: Tensor
    mtp: Tensor
    balance: Tensor
    z: Tensor
    hits: Tensor
    mtp_hits: Tensor
    load: Tensor


class _LanguageModel(nn.Module):
    def __init__(self, text: Mapping[str, Any]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(text["vocab_size"], text["hidden_size"])
        self.layers = nn.ModuleList([DecoderLayer(text, layer_type) for layer_type in text["layer_types"]])
        self.norm = RMSNorm(text["hidden_size"])


class _Model(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.language_model = _LanguageModel(config["text_config"])
        self.visual = VisionTower(config["vision_config"])


class _MtpHead(nn.Module):
    """Predicts the token after the next from the final state and the next token."""

    def __init__(self, text: Mapping[str, Any]) -> None:
        super().__init__()
        hidden = text["hidden_size"]
        self.fc = nn.Linear(2 * hidden, hidden, bias=False)
        self.layers = nn.ModuleList([DecoderLayer(text, "full_attention")])
        self.norm = RMSNorm(hidden)
        self.pre_fc_norm_embedding = RMSNorm(hidden)
        self.pre_fc_norm_hidden = RMSNorm(hidden)


class Miniature(nn.Module):
    """Built from config.json's object; torch's global generator draws the weights."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        text = config["text_config"]
        self.model = _Model(config)
        self.mtp = _MtpHead(text)
        rope = text["rope_parameters"]
        size = int(text["head_dim"] * rope["partial_rotary_factor"])
        frequency = float(rope["rope_theta"]) ** (-torch.arange(0, size, 2) / size)
        self.register_buffer("frequency", frequency, persistent=False)
        # The axis of each frequency: height and width take turns for the lengths of their sections; time has the rest.
        axis = torch.zeros(size // 2, dtype=torch.long)
        for number in (1, 2):
            axis[number : 3 * rope["mrope_section"][number] : 3] = number
        self.register_buffer("axis", axis, persistent=False)
        self._draw_weights()

    def forward(self, batch: Batch, *, mtp: bool = True) -> Losses:
        """Losses of a batch. The head costs one more layer, so it is optional."""
        device = self.model.language_model.embed_tokens.weight.device
        routings: list[Routing] = []
        embedded, layout = self._inputs(batch)
        final = self._text(embedded, layout, routings)
        ids = torch.from_numpy(batch.ids).to(device).flatten()
        flat = final.flatten(0, 1)
        # A learnt token is never an example's first, so the one before it is of the same example.
        target = torch.from_numpy(batch.learnt).to(device).flatten().nonzero()[:, 0]
        main, hits = self._cross_entropy(flat[target - 1], ids[target])
        zero = main.new_zeros(())
        of_mtp, mtp_hits = zero, hits[:0]
        if mtp:
            drafted = self._mtp(embedded, final, layout, routings).flatten(0, 1)
            sequence = torch.from_numpy(batch.example).to(device).flatten()
            second = target[(target >= 2) & (sequence[target - 2] == sequence[target])]
            of_mtp, mtp_hits = self._cross_entropy(drafted[second - 2], ids[second])
        weight = layout.real.float()
        weight[target - 1] *= ANSWER_WEIGHT
        balance, z, load = _router_losses(routings, weight)
        return Losses(main, of_mtp, balance, z, hits, mtp_hits, load)

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [B, T, V] of the text model and of the head, for comparison with other implementations."""
        embedded, layout = self._inputs(batch)
        final = self._text(embedded, layout, [])
        table = self.model.language_model.embed_tokens.weight
        return F.linear(final, table), F.linear(self._mtp(embedded, final, layout, []), table)

    def _text(self, x: Tensor, layout: Layout, routings: list[Routing]) -> Tensor:
        for layer in self.model.language_model.layers:
            x = layer(x, layout, routings)
        result: Tensor = self.model.language_model.norm(x)
        return result

    def _mtp(self, embedded: Tensor, final: Tensor, layout: Layout, routings: list[Routing]) -> Tensor:
        # The last token of a row gets any next token, because its prediction is not used.
        following = torch.cat([embedded[:, 1:], embedded[:, :1]], 1)
        both = torch.cat([self.mtp.pre_fc_norm_embedding(following), self.mtp.pre_fc_norm_hidden(final)], -1)
        result: Tensor = self.mtp.norm(self.mtp.layers[0](self.mtp.fc(both), layout, routings))
        return result

    def _cross_entropy(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        table = self.model.language_model.embed_tokens.weight
        if self.training:
            return cross_entropy(states, table, targets), targets.new_empty(0, dtype=torch.bool)
        logits = F.linear(states, table)
        return F.cross_entropy(logits, targets), logits.argmax(-1) == targets

    def _inputs(self, batch: Batch) -> tuple[Tensor, Layout]:
        table = self.model.language_model.embed_tokens
        device = table.weight.device
        x = table(torch.from_numpy(batch.ids).to(device))
        for (height, width), (pixels, places) in batch.pictures.items():
            rows = self.model.visual(torch.from_numpy(pixels).to(device), height, width).flatten(0, 1)
            where = torch.from_numpy(places).to(device)
            x = x.flatten(0, 1).index_copy(0, where, rows.to(x.dtype)).view_as(x)
        return x, self._layout(batch, device)

    def _layout(self, batch: Batch, device: torch.device) -> Layout:
        sequence = torch.from_numpy(batch.sequence).to(device)
        length = sequence.shape[1]
        starts = torch.ones_like(sequence, dtype=torch.bool)
        starts[:, 1:] = sequence[:, 1:] != sequence[:, :-1]
        visible = (sequence.unsqueeze(2) == sequence.unsqueeze(1)).tril().unsqueeze(1)
        same = []
        for distance in (1, 2, 3):
            equal = torch.zeros(*sequence.shape, 1, device=device)
            equal[:, distance:, 0] = (sequence[:, distance:] == sequence[:, : length - distance]).float()
            same.append(equal)
        positions = torch.from_numpy(batch.positions).to(device)
        angle = positions[self.get_buffer("axis")].permute(1, 2, 0) * self.get_buffer(
            "frequency"
        )  # [B, T, rotary_dim / 2]
        angle = torch.cat([angle, angle], -1).unsqueeze(1)
        return Layout(starts, visible, tuple(same), angle.cos(), angle.sin(), sequence.flatten() >= 0)

    def _draw_weights(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("A_log"):
                # Some heads forget within a few tokens, others remember thousands.
                nn.init.uniform_(parameter, math.log(0.05), math.log(8.0))
            elif name.endswith("dt_bias"):
                nn.init.uniform_(parameter, -4.0, -1.0)
            elif name.endswith("conv1d.weight"):
                nn.init.uniform_(parameter, -0.5, 0.5)
            elif name.endswith(_BLOCK_OUTPUTS):
                nn.init.zeros_(parameter)  # a block adds nothing at first: half the loss after 50 steps
            elif name.endswith("pos_embed.weight"):
                # As large as a patch's embedding: with a thirtieth of that, tokens of pictures hardly know their places
                # after 3,000 steps.
                nn.init.normal_(parameter, std=0.5)
            elif parameter.ndim > 1 and "embed" not in name:
                fan_in = parameter.shape[-1] if "patch_embed" not in name else parameter[0].numel()
                nn.init.normal_(parameter, std=0.5 / math.sqrt(fan_in))
            elif parameter.ndim > 1:
                fan_in = parameter[0].numel() if "patch_embed" in name else 2500
                nn.init.normal_(parameter, std=1.0 / math.sqrt(fan_in))


def _router_losses(routings: Sequence[Routing], weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Balance (Switch Transformer, equations 4 to 6, for top-k), z, and load [layers, E].

    Args:
        weight: [N], of each token; zero for padding.
    """
    balances, zs, loads = [], [], []
    count = weight.sum()
    for routing in routings:
        num_experts, num_chosen = routing.probabilities.shape[1], routing.index.shape[1]
        chosen = torch.zeros(num_experts, device=weight.device)
        chosen.index_add_(0, routing.index.flatten(), weight.repeat_interleave(num_chosen))
        load = chosen * (num_experts / (count * num_chosen))
        probability = (routing.probabilities * weight.unsqueeze(1)).sum(0) / count
        balances.append((load * probability).sum())
        zs.append(((routing.logits.logsumexp(-1) ** 2) * weight).sum() / count)
        loads.append(load)
    return torch.stack(balances).mean(), torch.stack(zs).mean(), torch.stack(loads)


def stored_tensors(model: Miniature) -> Iterator[tuple[str, Tensor]]:
    """Parameters by their names in a published Qwen 3.5 checkpoint; the head's experts one tensor each."""
    for name, parameter in model.named_parameters():
        tensor = parameter.detach().cpu()
        if not name.startswith("mtp.layers.0.mlp.experts."):
            yield name, tensor
            continue
        prefix, _, kind = name.rpartition(".")
        for index, matrix in enumerate(tensor):
            if kind == "gate_up_proj":
                gate, up = matrix.chunk(2)
                yield f"{prefix}.{index}.gate_proj.weight", gate
                yield f"{prefix}.{index}.up_proj.weight", up
            else:
                yield f"{prefix}.{index}.down_proj.weight", matrix


@torch.no_grad()
def load_stored(model: Miniature, stored: Mapping[str, Tensor]) -> None:
    """Fill the parameters of a model that is on the CPU from tensors by their stored names, of any float type.

    Raises:
        ValueError: a tensor is missing, belongs to no parameter, or has another shape.
    """
    parts = dict(stored_tensors(model))  # views of the parameters
    if unmatched := sorted(parts.keys() ^ stored.keys()):
        raise ValueError(f"{unmatched[0]} is in the checkpoint or in the model, and not in both: their sizes differ")
    for name, part in parts.items():
        if part.shape != stored[name].shape:
            raise ValueError(f"{name} is {list(stored[name].shape)} in the checkpoint, {list(part.shape)} in the model")
        part.copy_(stored[name])
