"""All targets, by name. A target is registered only here."""

from __future__ import annotations

from qwonnx.export.errors import ExportError
from qwonnx.export.modeling.cache_spec import KvType
from qwonnx.export.targets.cpu import CpuTarget
from qwonnx.export.targets.cuda import CudaTarget
from qwonnx.export.targets.portable import PortableTarget
from qwonnx.export.targets.rtx import RtxTarget
from qwonnx.export.targets.target import Activations, Target, TargetChoice

# The default first.
_ALL = (CpuTarget(), PortableTarget(), CudaTarget(), RtxTarget())
TARGETS: dict[str, Target] = {target.name: target for target in _ALL}
DEFAULT_TARGET = next(iter(TARGETS))


def choose_target(name: str = DEFAULT_TARGET, activations: str | None = None, kv: str | None = None) -> TargetChoice:
    """A target by its name, with its types of activations and cache.

    Args:
        name: of the target.
        activations: of its kernels. None: the target's default.
        kv: how keys and values are cached. None: the target's default.

    Raises:
        ExportError: the target or a type is unknown, or the target does not offer it.
    """
    if name not in TARGETS:
        raise ExportError(f"target {name!r} is unknown: use one of {', '.join(TARGETS)}")
    target = TARGETS[name]
    if activations is not None and activations not in list(Activations):
        raise ExportError(f"activations {activations!r} is unknown: use one of {', '.join(Activations)}")
    if kv is not None and kv not in list(KvType):
        raise ExportError(f"kv {kv!r} is unknown: use one of {', '.join(KvType)}")
    if activations not in (None, *target.activations):
        raise ExportError(f"the target {name} has no activations {activations}: use {' or '.join(target.activations)}")
    chosen = target.activations[0] if activations is None else Activations(activations)
    kv_types = target.kv_types_with(chosen)
    if kv is not None and kv not in kv_types:
        beside = f" beside activations {chosen}" if kv in target.kv_types else ""
        raise ExportError(f"the target {name} has no kv {kv}{beside}: use one of {', '.join(kv_types)}")
    return TargetChoice(target=target, activations=chosen, kv=kv_types[0] if kv is None else KvType(kv))
