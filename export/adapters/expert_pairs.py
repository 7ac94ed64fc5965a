"""Factors of the routed experts of a layer, which peft has as one 3-D parameter (target_parameters).

    lora_A [experts * rank, a], lora_B [b, rank * experts], for a parameter [experts, rows, columns]
    peft 0.19 and later    a = columns, b = rows       W[e] + s B_e A_e
    peft 0.18 and older    a = rows, b = columns       W[e] + s (B_e A_e)^T

Nothing in an adapter says which of the two it is, or of which parameter of the module a pair of factors is: only the
shapes do. All pairs of an adapter have one order.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from qwonnx.export.adapters.adapter import Adapter, LoraModule
from qwonnx.export.adapters.factors import Factor
from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.weight_names import DOWN, GATE_UP
from qwonnx.export.errors import AdapterError
from qwonnx.runtime.adapters.tensor_names import Part
from qwonnx.runtime.artifact.strict_json import quoted


class Order(Enum):
    """Which factor has the rows of the parameter."""

    ROWS_IN_B = "peft 0.19 and later"
    ROWS_IN_A = "peft 0.18 and older"


@dataclass(frozen=True, slots=True)
class ExpertPair:
    """The two factors of one parameter of a layer's experts: of its matrices [num_rows, num_columns]."""

    adapter: Adapter
    module: LoraModule
    parameter: str  # GATE_UP or DOWN
    num_rows: int
    num_columns: int
    num_experts: int
    orders: tuple[Order, ...]  # that the shapes allow

    @property
    def name(self) -> str:
        """The parameter's name in the trained model, for patterns of adapter_config.json."""
        return f"{self.module.name}.{self.parameter}"

    @property
    def scaling(self) -> float:
        return self.adapter.config.scaling_of(self.name)

    def factors(self, order: Order, expert: int) -> tuple[Factor, Factor]:
        """The factor with the rows of one expert's matrix, and the one with its columns."""
        tensors, rank = self.adapter.tensors, self.adapter.config.rank_of(self.name)
        a = Factor(tensors, self.module.parts[Part.A], rank, True, expert, self.num_experts)
        b = Factor(tensors, self.module.parts[Part.B], rank, False, expert, self.num_experts)
        return (a, b) if order is Order.ROWS_IN_A else (b, a)


def expert_pairs(adapter: Adapter, config: ModelConfig) -> tuple[ExpertPair, ...]:
    """All factors of experts in an adapter.

    Raises:
        AdapterError: a pair fits no parameter, or two pairs fit one.
    """
    pairs = tuple(_pair(adapter, module, config) for module in adapter.modules if module.is_experts)
    first: dict[tuple[str, str], LoraModule] = {}
    for pair in pairs:
        other = first.setdefault((pair.module.ours, pair.parameter), pair.module)
        if other is not pair.module:
            raise AdapterError(
                f"{adapter.path}: {quoted(other.shown)} and {quoted(pair.module.shown)} are both of"
                f" {pair.parameter}: save the adapter again"
            )
    return pairs


def order_of(adapter: Adapter, pairs: tuple[ExpertPair, ...]) -> Order:
    """The order of all pairs, of which there is at least one.

    Raises:
        AdapterError: the shapes fit both orders, or contradict each other.
    """
    certain = {pair.orders[0]: pair for pair in pairs if len(pair.orders) == 1}
    if len(certain) > 1:
        first, second = (quoted(pair.module.shown) for pair in certain.values())
        raise AdapterError(
            f"{adapter.path}: {first} and {second} have the orders of two versions of peft: save the adapter again"
        )
    if not certain:
        raise AdapterError(
            f"{adapter.path}: the shapes of {quoted(pairs[0].module.shown)} do not say whether peft 0.18 or a later"
            " version wrote it, and they differ: merge it with the version of the training, and export the result"
        )
    return next(iter(certain))


def _pair(adapter: Adapter, module: LoraModule, config: ModelConfig) -> ExpertPair:
    """The parameter that a pair's shapes fit, which is never more than one."""
    hidden, inner = config.hidden_size, config.moe_intermediate_size
    found: dict[str, list[Order]] = {}
    for parameter, (rows, columns) in ((GATE_UP, (2 * inner, hidden)), (DOWN, (hidden, inner))):
        grown = config.num_experts * adapter.config.rank_of(f"{module.name}.{parameter}")
        for order, (a, b) in ((Order.ROWS_IN_B, (columns, rows)), (Order.ROWS_IN_A, (rows, columns))):
            if adapter.shapes(module, Part.A, Part.B) == ((grown, a), (b, grown)):
                found.setdefault(parameter, []).append(order)
    if not found:
        shapes = " and ".join(str(list(shape)) for shape in adapter.shapes(module, *module.parts))
        raise AdapterError(
            f"{adapter.path}: {quoted(module.shown)} and its other factor have the shapes {shapes}, which fit no"
            f" parameter of {config.num_experts} experts at the rank of adapter_config.json: the base is another model"
        )
    ((parameter, orders),) = found.items()
    rows, columns = (2 * inner, hidden) if parameter == GATE_UP else (hidden, inner)
    return ExpertPair(adapter, module, parameter, rows, columns, config.num_experts, tuple(orders))
