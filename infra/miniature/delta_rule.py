"""The gated delta rule over packed sequences, in chunks, for training (arXiv 2412.06464, section 3.3).

Per head, with a state S of [key, value] that starts at zero with every sequence:

    S_t = exp(g_t) S_{t-1} + k_t (beta_t (v_t - (exp(g_t) S_{t-1})^T k_t))^T,    o_t = S_t^T q_t

The steps of a chunk are solved together; the state passes from chunk to chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 32  # the fastest on a CPU, of 16, 32 and 64

# A decay that clears a state: e^-60 vanishes in float32, and sums of a few of them still resolve true decays.
_FORGET = -60.0


def gated_delta_rule(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, starts: Tensor, *, chunk: int = CHUNK
) -> Tensor:
    """Outputs [B, T, heads, value_dim], float32.

    Args:
        query, key: [B, T, heads, key_dim], float32, of unit length; the query is scaled already.
        value: [B, T, heads, value_dim].
        decay: [B, T, heads], the logarithm, at most zero.
        beta: [B, T, heads], from 0 to 1.
        starts: bool [B, T], where a new sequence begins. T must be a multiple of `chunk`.
    """
    batch, length, heads, key_dim = key.shape
    assert length % chunk == 0, f"{length} tokens are not whole chunks of {chunk}"
    # The decay of a sequence's first token is irrelevant to the sequence: here it clears the state of the one before.
    decay = torch.where(starts.unsqueeze(-1), _FORGET, decay)

    def chunks(tensor: Tensor) -> Tensor:  # [B, T, heads, d] -> [B, heads, T / chunk, chunk, d]
        return tensor.view(batch, length // chunk, chunk, heads, -1).permute(0, 3, 1, 2, 4)

    query, key, value = chunks(query), chunks(key), chunks(value)
    beta, total = chunks(beta.unsqueeze(-1)), chunks(decay.unsqueeze(-1)).cumsum(3)
    above = torch.ones(chunk, chunk, dtype=torch.bool, device=key.device).triu(1)
    # The part of position j's write that remains at position i of the chunk; masked before exp, which would overflow.
    left = (total - total.transpose(3, 4)).masked_fill(above, -torch.inf).exp()
    grown = total.exp()
    key_beta = key * beta
    system = (key_beta @ key.transpose(3, 4)) * left
    right = torch.cat([value * beta, key_beta * grown], -1)
    # unitriangular: the solver takes the diagonal as one, and all above it as zero.
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    written, erased = solved.split([value.shape[-1], key_dim], -1)
    within = (query @ key.transpose(3, 4)) * left
    reading = query * grown
    kept = total[:, :, :, -1:]
    writing = (key * (kept - total).exp()).transpose(3, 4)
    remaining = kept.exp()

    state = value.new_zeros(batch, heads, key_dim, value.shape[-1])
    outputs = []
    # unbind, because the gradient of each single index would be a whole tensor, mostly zeros.
    parts = (part.unbind(2) for part in (written, erased, reading, within, remaining, writing))
    for write, erase, read, attend, remain, add in zip(*parts, strict=True):
        new = write - erase @ state
        outputs.append(read @ state + attend @ new)
        state = state * remain + add @ new
    # [B, heads, T / chunk, chunk, d] -> [B, T, heads, d]
    return torch.stack(outputs, 2).permute(0, 2, 3, 1, 4).reshape(batch, length, heads, -1)
