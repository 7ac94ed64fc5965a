"""What a verification measures, before anything is decided."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwonnx.export.verification.predictions import Predictions

EMBEDDING, LAYER, HEAD = "embedding", "layer", "head"  # names of parts; those of layers have their number, too

# A model that chooses among so large a share of its vocabulary (in nats) predicts nothing. A text of the model's kind
# is as surprising as the model expects, give or take: the miniature's own tasks 0.1 to 1 nats, a foreign text 8.
_FLAT_SHARE = 0.9
_FOREIGN_NATS = 2.5


@dataclass(frozen=True, slots=True)
class PartError:
    """How far a part of the artifact (embedding, a layer, the head) is from the checkpoint's, on the same input.

    error: the root mean square of the difference, relative to what the part adds to its input.
    median: over tokens, of the same ratio of each token: a token that went to another expert changes only `error`.
    """

    name: str
    error: float
    median: float

    @classmethod
    def of(cls, name: str, difference: npt.NDArray[np.float32], whole: npt.NDArray[np.float32]) -> PartError:
        """From vectors [T, n]."""
        parts, wholes = (np.linalg.norm(each.astype(np.float64), axis=-1) for each in (difference, whole))
        return cls.of_ratios(name, parts, wholes)

    @classmethod
    def of_ratios(cls, name: str, parts: npt.NDArray[np.float64], wholes: npt.NDArray[np.float64]) -> PartError:
        """From lengths [T] of differences and of what they are compared with."""
        ratios = np.divide(parts, wholes, out=np.where(parts > 0, np.inf, 0.0), where=wholes > 0)
        whole = float(np.sqrt(np.square(wholes).sum()))
        part = float(np.sqrt(np.square(parts).sum()))
        error = part / whole if whole else (math.inf if part else 0.0)
        return cls(name, error, float(np.median(ratios)))


@dataclass(frozen=True, slots=True)
class TextQuality:
    """What a text tells of a model, in nats a token by the checkpoint's own predictions.

    surprise: the mean of -log p of the next token. entropy: what it would be on the model's own texts.
    """

    surprise: float
    entropy: float
    vocab_size: int

    @property
    def is_flat(self) -> bool:
        """The model predicts nearly every token alike, so that predictions differ little whatever the weights are."""
        return self.entropy > _FLAT_SHARE * math.log(self.vocab_size)

    @property
    def is_foreign(self) -> bool:
        """The model expects other texts: its predictions are arbitrary, and rounding moves them far."""
        return self.surprise - self.entropy > _FOREIGN_NATS


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was measured.

    parts: embedding, layers, head; empty if the graph does not show its residual stream.
    experts_used: the share of experts of all layers that a token of the text chose; None in a dense model.
    layer_peaks: the largest absolute value of the checkpoint's residual stream after each layer.
    merge_error: the same as logit_error, of the checkpoint beside a model into which peft merged the adapters; None
        without adapters, or if that was not compared.
    """

    predictions: Predictions
    parts: tuple[PartError, ...]
    layer_peaks: tuple[float, ...]
    experts_used: float | None
    vocab_size: int
    merge_error: float | None = None

    @property
    def mean_kl(self) -> float:
        return float(self.predictions.kl.mean())

    @property
    def kl_error(self) -> float:
        """The standard error of mean_kl: few tokens cause most of a divergence, so a short text says little."""
        kl = self.predictions.kl
        return float(kl.std(ddof=1) / math.sqrt(len(kl))) if len(kl) > 1 else 0.0

    @property
    def logit_error(self) -> float:
        """The median over tokens."""
        return float(np.median(self.predictions.logit_error))

    @property
    def text(self) -> TextQuality:
        return TextQuality(
            float(self.predictions.surprise_checkpoint.mean()), float(self.predictions.entropy.mean()), self.vocab_size
        )
