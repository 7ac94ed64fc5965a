"""Logits of an artifact and of its checkpoint on the same tokens, and their difference as numbers.

Both see the same token ids, teacher-forced, so one wrong choice does not spoil the rest. transformers computes in
float32 on the weights as stored; the artifact runs as it is served, in chunks, over its own states. `qwonnx verify`
runs the checkpoint layer by layer instead (verification/), and ends in a verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwonnx.export.errors import VerificationError
from qwonnx.export.evaluation.decoder_session import CHUNK_TOKENS, DecoderSession, Logits, TokenIds
from qwonnx.export.evaluation.measures import kl_divergence, token_scores
from qwonnx.runtime.artifact.folder import Artifact
from qwonnx.runtime.artifact.manifest import ArtifactError
from qwonnx.runtime.errors import TokenizerError
from qwonnx.runtime.native.kernels import Kernels
from qwonnx.runtime.text.artifact_tokenizer import load_tokenizer
from qwonnx.runtime.text.tokenizer import Tokenizer

# Enough for stable means, and not too many for a CPU: transformers keeps all logits of a window, 1 MB a token.
MAX_TOKENS = 1024

# The default text: several scripts, prose, a list, numbers and code.
SAMPLE_TEXT = """The lighthouse keeper wrote down the weather every morning, and in forty years he missed two days.
Der Zug nach Basel fährt um 7:42 Uhr von Gleis 3; wer umsteigt, hat elf Minuten Zeit.
La bibliothèque ouvre à neuf heures, mais le gardien laisse entrer les habitués plus tôt.
春になると、川沿いの道は人でいっぱいになる。弁当を持って、木の下に座る。
市场在河的另一边，早上六点开门，卖鱼的人总是最早到。
नदी के किनारे एक पुराना पुल है, जिस पर अब केवल पैदल लोग चलते हैं।
يبيع الخباز خبزه قبل شروق الشمس، ثم يغلق باب دكانه وينام.
1. Measure 250 g of flour. 2. Add 160 ml of water. 3. Wait for 45 minutes.
def area(width: float, height: float) -> float:
    return width * height
"""


FLOAT16_LIMIT = 65_504
# Another text may go further than the one that was read.
_NEAR_LIMIT = FLOAT16_LIMIT / 4


@dataclass(frozen=True, slots=True)
class ReferenceRun:
    """What transformers computes on one text.

    logits: [num_tokens, vocab_size].
    layer_peaks: the largest absolute value of the residual stream after each layer.
    """

    logits: Logits
    layer_peaks: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """The difference of two models on one text. Perplexities are per token; KL is in nats, checkpoint to artifact.

    layer_peaks are the checkpoint's, see ReferenceRun.
    """

    num_tokens: int
    max_logit_difference: float
    mean_kl: float
    top1_agreement: float  # share of positions with the same most likely token
    perplexity_checkpoint: float
    perplexity_artifact: float
    layer_peaks: tuple[float, ...]

    @property
    def range_warning(self) -> str | None:
        """A line about float16, if activations come near its limit."""
        peak = max(self.layer_peaks, default=0.0)
        if peak <= _NEAR_LIMIT:
            return None
        return (
            f"activations reach {peak:,.0f} after layer {self.layer_peaks.index(peak)} and float16 ends at"
            f" {FLOAT16_LIMIT:,}: an artifact for the target cuda may overflow, so give it --activations bfloat16"
        )


def measure(
    expected: Logits, actual: Logits, token_ids: TokenIds, layer_peaks: tuple[float, ...] = ()
) -> VerificationReport:
    """The report on two models' logits [num_tokens, vocab_size] at the same token ids [num_tokens]."""
    by_checkpoint, by_artifact = (token_scores(logits[:-1], token_ids[1:]).surprise for logits in (expected, actual))
    return VerificationReport(
        num_tokens=len(token_ids),
        max_logit_difference=max(float(np.abs(p - q).max()) for p, q in zip(expected, actual, strict=True)),
        mean_kl=float(kl_divergence(expected, actual).mean()),
        top1_agreement=float((expected.argmax(-1) == actual.argmax(-1)).mean()),
        perplexity_checkpoint=float(np.exp(by_checkpoint.mean())),
        perplexity_artifact=float(np.exp(by_artifact.mean())),
        layer_peaks=layer_peaks,
    )


def run_reference(
    checkpoint: Path, token_ids: TokenIds, weights_file: str | None = None, adapters: Sequence[Path] = ()
) -> ReferenceRun:
    """Run transformers, in float32, on the stored weights.

    Raises:
        CheckpointError, VerificationError: see load_reference_model and merge_adapters.
    """
    import torch

    from qwonnx.export.evaluation.reference_adapters import merge_adapters
    from qwonnx.export.evaluation.reference_model import layer_peaks, load_reference_model, quiet_transformers

    with quiet_transformers():
        model = merge_adapters(load_reference_model(checkpoint, weights_file), adapters)
        with torch.no_grad(), layer_peaks(model) as peaks:
            logits = model(torch.tensor(token_ids)[None], use_cache=False).logits[0]
    return ReferenceRun(logits.float().numpy(), tuple(peaks))


def artifact_logits(
    artifact: Artifact, token_ids: TokenIds, chunk_tokens: int = CHUNK_TOKENS, kernels: Kernels = Kernels.AUTO
) -> Logits:
    """The decoder's logits at every position, read in chunks over states that start from zero.

    Raises:
        VerificationError: the artifact has no decoder, or ONNX Runtime cannot load or run it.
    """
    chunks = DecoderSession(artifact, kernels=kernels).read(token_ids, np.arange(len(token_ids)), chunk_tokens)
    return np.concatenate([chunk.logits for chunk in chunks])


def verification_tokenizer(artifact: Artifact) -> Tokenizer:
    """The artifact's tokenizer.

    Raises:
        VerificationError: it cannot be used.
    """
    try:
        return load_tokenizer(artifact)
    except ArtifactError as error:
        raise VerificationError(str(error)) from error
    except TokenizerError as error:
        raise VerificationError(f"{error} ({artifact.folder})") from error


def verification_tokens(tokenizer: Tokenizer, text: str) -> TokenIds:
    """The first MAX_TOKENS token ids of a text, int64.

    Raises:
        VerificationError: there are fewer than two.
    """
    token_ids = np.array(tokenizer.encode(text)[:MAX_TOKENS], np.int64)
    if len(token_ids) < 2:
        raise VerificationError("the text has fewer than two tokens: give a longer one")
    return token_ids
