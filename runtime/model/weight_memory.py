"""How the weights share the process's memory with everything else: residency, and a limit that experts give way to.

    memory = anonymous memory + code + weights that every token needs + experts that are in memory now + a reserve

Only the experts can shrink. They get what the others leave, measured again every second. If all experts fit, there is
no limit, and nothing is done in a step.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, islice

from msgspec import Struct

from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.machine import anonymous_bytes, file_bytes, memory_limit_bytes
from qwonnx.runtime.model.weight_files import MappedRange, WeightFiles
from qwonnx.runtime.native.expert_memory import ExpertAccount, ExpertLayer, ExpertMemory
from qwonnx.runtime.quantities import bytes_text
from qwonnx.runtime.settings import Residency, RuntimeSettings

logger = logging.getLogger(__name__)

_ADJUST_SECONDS = 1.0
# For page tables, and what a step needs for a moment: bytes, and a share of the limit.
_RESERVE_BYTES, _RESERVE_SHARE = 32 << 20, 0.02


class _Sizes(Struct, frozen=True):
    """Bytes of mapped weights: of all experts, of the largest layer's, and of what every token needs."""

    experts: int
    largest_layer: int
    others: int


class WeightMemory:
    """Of one engine. start() before the first step; adjust() between steps.

    Args:
        files: the artifact's.
        experts: the session's; None or without layers: weights have no part that can go.
        settings: memory_bytes, weights_residency.
        shares: of tokens that need each expert of each layer, from earlier use; empty: not known.

    Raises:
        SettingsError: memory_bytes cannot be kept.
    """

    def __init__(
        self,
        files: WeightFiles,
        experts: ExpertMemory | None,
        settings: RuntimeSettings,
        shares: Sequence[Sequence[float]] = (),
    ) -> None:
        self._files, self._experts = files, experts
        self._residency = Residency(settings.weights_residency)
        self._code = file_bytes() or 0  # before the first step: no weights yet
        self._others: list[MappedRange] = []  # parts of the files that every token needs
        self._sizes = _Sizes(experts=0, largest_layer=0, others=files.num_bytes)
        self._limit = self._limit_of(settings)
        self._experts_limit: int | None = None
        self._adjusted_at = -math.inf
        self._stopping = threading.Event()
        if self._limit is not None and experts and [len(layer) for layer in shares] == experts.num_experts():
            experts.expect(shares)

    @property
    def free_bytes(self) -> int | None:
        """What a limit leaves for states: all but the weights without which no step runs. None: there is no limit."""
        if self._limit is None:
            return None
        return max(0, self._room(self._limit) - min(self._sizes.largest_layer, self._sizes.experts))

    def start(self) -> None:
        """Set the limit of experts, if there is one, and bring weights into memory as weights_residency says.

        Raises:
            SettingsError: the system or its limits do not allow it.
        """
        self.adjust()
        if self._experts is None or self._experts_limit is None:
            self._files.make_resident(self._residency)
            return
        logger.info(
            "the weights take %s and the limit of memory is %s: experts take turns in %s",
            bytes_text(self._sizes.experts + self._sizes.others),
            bytes_text(self._limit or 0),
            bytes_text(self._experts_limit),
        )
        self._files.make_resident(self._residency, self._others)
        if self._residency is Residency.POPULATE:
            self._fill(self._experts)
        elif self._residency is not Residency.MAP:
            threading.Thread(target=self._fill, args=(self._experts,), name="qwonnx-experts", daemon=True).start()

    def adjust(self) -> None:
        """Give experts what other memory leaves; does nothing within a second of the last time."""
        now = time.monotonic()
        if self._limit is None or self._experts is None or now - self._adjusted_at < _ADJUST_SECONDS:
            return
        self._adjusted_at = now
        room = max(self._room(self._limit), self._sizes.largest_layer)
        if self._experts_limit is None and room >= self._sizes.experts:
            return
        room = min(room, self._sizes.experts)
        # A small change is not worth a call: the reserve covers it.
        if self._experts_limit is None or abs(room - self._experts_limit) > _RESERVE_BYTES // 8:
            self._experts.limit(room, can_ask=self._files.are_writable)
            self._experts_limit = room

    def adjust_at_once(self) -> None:
        """Have the next adjust() look at the memory, whatever the clock says: it may have jumped."""
        self._adjusted_at = float("-inf")

    def close(self) -> None:
        """Stop to read ahead."""
        self._stopping.set()

    def uses(self) -> list[list[int]]:
        """How many tokens went to each expert, by layer. From any thread."""
        return self._experts.uses() if self._experts else []

    def account(self) -> ExpertAccount:
        """From any thread."""
        return self._experts.account() if self._experts else ExpertAccount()

    def _limit_of(self, settings: RuntimeSettings) -> int | None:
        """Bytes for the process; None if there is no limit, or one that all weights fit.

        Raises:
            SettingsError: memory_bytes is less than this model needs at least.
        """
        if settings.memory_bytes == 0:
            return None
        asked = settings.memory_bytes
        limit = memory_limit_bytes() if asked is None else asked
        if limit is None:
            return None
        if asked is None and self._room(limit) >= 0:
            return None  # a container, or a machine, that is large enough
        can_drop = self._divide()
        if asked is None:
            return limit if can_drop else None
        if self._room(limit) < self._sizes.experts and not can_drop:
            raise SettingsError(
                f"memory_bytes is {asked} and the weights alone take {self._files.num_bytes}: only experts on native"
                " kernels (Linux, a mixture of experts) can be read when they are needed"
            )
        needed = limit - self._room(limit) + self._sizes.largest_layer
        if needed > limit:
            raise SettingsError(f"memory_bytes is {asked} and this model needs {needed} at least: give more")
        return limit

    def _divide(self) -> bool:
        """Divide the weights into experts and what every token needs; False if experts cannot go."""
        layers = self._experts.layers() if self._experts else []
        ranges = self._files.mapped_ranges()
        parts = [part for layer in layers for part in _ranges(layer)]
        # Experts that ONNX Runtime copied cannot go: no file stands behind them.
        if not parts or without(parts, ranges):
            mapped = sum(each.num_bytes for each in ranges) if ranges else self._files.num_bytes
            self._sizes = _Sizes(experts=0, largest_layer=0, others=mapped)
            return False
        self._others = without(ranges, parts)
        self._sizes = _Sizes(
            experts=sum(layer.num_bytes for layer in layers),
            largest_layer=max(layer.num_bytes for layer in layers),
            others=sum(each.num_bytes for each in self._others),
        )
        return True

    def _room(self, limit: int) -> int:
        """Bytes that experts may take; below 0 if the rest takes more than the limit."""
        reserve = _RESERVE_BYTES + int(limit * _RESERVE_SHARE)
        return limit - reserve - self._code - self._sizes.others - (anonymous_bytes() or 0)

    def _fill(self, experts: ExpertMemory) -> None:
        """Read experts until the limit, the most used ones first."""
        while not self._stopping.is_set() and experts.fill():
            pass


def without(ranges: Sequence[MappedRange], holes: Sequence[MappedRange]) -> list[MappedRange]:
    """The parts of the ranges that no hole covers, in whole pages: a page that a hole touches belongs to the hole."""
    page = os.sysconf("SC_PAGE_SIZE")
    cut = sorted((hole.address // page * page, -(-(hole.address + hole.num_bytes) // page) * page) for hole in holes)
    ends = list(accumulate((last for _, last in cut), max))
    left = []
    for each in ranges:
        begin, end = each.address, each.address + each.num_bytes
        for first, last in islice(cut, bisect_right(ends, begin), None):
            if first >= end:
                break
            if first > begin:
                left.append(MappedRange(begin, first - begin))
            begin = max(begin, last)
        if begin < end:
            left.append(MappedRange(begin, end - begin))
    return left


def _ranges(layer: ExpertLayer) -> list[MappedRange]:
    return [MappedRange(part.address, part.bytes_each * layer.num_experts) for part in layer.parts]
