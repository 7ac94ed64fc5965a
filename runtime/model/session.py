"""The only module that calls ONNX Runtime: options from settings, exceptions mapped to SessionError."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import onnxruntime
from msgspec import Struct

from qwonnx.runtime.artifact.manifest import Manifest
from qwonnx.runtime.errors import SessionError, SettingsError
from qwonnx.runtime.install import how_to_install
from qwonnx.runtime.machine import cpu_quota
from qwonnx.runtime.model.placement import CPU, CUDA, CUDA_TARGET, TENSORRT, Placement
from qwonnx.runtime.native.choice import choose_kernels
from qwonnx.runtime.native.expert_memory import ExpertMemory
from qwonnx.runtime.native.kernels import Kernels
from qwonnx.runtime.settings import RuntimeSettings

_NOT_CAPTURED = -1  # of ONNX Runtime's gpu_graph_id
# For how long a thread without work busy-waits. It is longer than the code between two operators and between two steps
# takes. By default a thread spins on for 35 ms of processor time after each step, and after the session is made.
_SPIN_MICROSECONDS = 1000
# What ONNX Runtime's arena and CUDA say when a device's memory ends.
_NO_MEMORY = re.compile(r"Failed to allocate memory|out of memory|cudaErrorMemoryAllocation")
_NO_MACHINE_CODE = "no kernel image is available"
_PROVIDER_LIBRARIES = {CUDA: "cuda", TENSORRT: "tensorrt"}


class TensorType(Struct, frozen=True):
    """Type of a graph's input or output: numpy's dtype name, and its shape, with None for variable axes."""

    dtype: str
    shape: tuple[int | None, ...]


class StepSession(Protocol):
    """What a runner needs of a session: see Session."""

    @property
    def inputs(self) -> Mapping[str, TensorType]: ...

    @property
    def outputs(self) -> Mapping[str, TensorType]: ...

    @property
    def captures(self) -> bool: ...

    @property
    def is_on_device(self) -> bool: ...

    def new_binding(self) -> Any: ...

    def run(self, binding: Any, /) -> None: ...

    def replaying(self, graph: int) -> CapturedRun: ...


class PlacedNode(Struct, frozen=True):
    """A node of an optimised graph, and the provider that runs it. The domain of standard operators is empty."""

    name: str
    domain: str
    op_type: str
    provider: str


class Session:
    """A loaded graph. run() is for one thread at a time, like the states bound to it.

    Args:
        graph: the ONNX file; its external data is in the same folder.
        settings: threads, kernels, spinning, log level; and providers, without a placement.
        native_operators: of the graph, from the manifest.
        placement: where it runs; None: on the settings' providers.
        records_nodes: placed_nodes() can be asked.

    Attributes:
        is_on_device: the graph does not run on the CPU.
        captures: steps can be captured as CUDA graphs: replaying() runs them.
        kernels: that run the native operators.
        experts: of native kernels, which of them lie in memory; None: ONNX Runtime's kernels run.

    Raises:
        NativeKernelsError: the settings ask for native kernels, and this graph cannot have them here.
        SettingsError: this ONNX Runtime does not have a provider.
        SessionError: ONNX Runtime cannot load the graph, or cannot use the first provider, whose place it would give to
            the next one, and at last to the CPU, without a word.
    """

    def __init__(
        self,
        graph: Path,
        settings: RuntimeSettings,
        native_operators: Sequence[str] = (),
        placement: Placement | None = None,
        *,
        records_nodes: bool = False,
    ) -> None:
        placement = placement or Placement.on_host(settings)
        onnxruntime.set_default_logger_severity(settings.log_severity)  # what it says outside a session
        available = onnxruntime.get_available_providers()
        for provider in () if placement.plugin else placement.providers:
            if provider not in available:
                names = ", ".join(available)
                raise SettingsError(f"providers names {provider}, which this ONNX Runtime lacks: choose from {names}")
        self.kernels = choose_kernels(
            Kernels(settings.kernels),
            native_operators,
            onnxruntime.SessionOptions,
            on_cpu=placement.first == CPU,
        )
        options = _options(settings, placement)
        records_nodes = records_nodes or bool(placement.host_operators)
        if records_nodes:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        self.experts: ExpertMemory | None = None
        collecting: AbstractContextManager[None] = nullcontext()
        if self.kernels.library:
            self.kernels.library.register(options)
            self.experts = self.kernels.library.expert_memory()
            collecting = self.experts.collect()
        try:
            with collecting:
                self._session: Any = onnxruntime.InferenceSession(
                    str(graph),
                    sess_options=options,
                    providers=_named_providers(placement),
                    enable_fallback=0,
                )
        except Exception as error:
            _check_libraries(placement)
            text = _explained(error, on_device=placement.device is not None)
            raise SessionError(f"ONNX Runtime cannot load {graph}: {text}") from error
        wanted, used = placement.first, self._session.get_providers()[0]
        if used != wanted:
            _check_libraries(placement)
            raise SessionError(
                f"providers names {wanted} first, and ONNX Runtime uses {used}: its log above says why (a driver, a "
                "library or a device is missing); without this provider, name another one first"
            )
        if placement.host_operators:
            self._check_host_operators(placement)
        self.is_on_device = placement.device is not None
        self.captures = placement.providers[wanted].get("enable_cuda_graph") == "1"
        self._eager = _run_options(_NOT_CAPTURED) if self.captures else None
        self.inputs = {value.name: _tensor_type(value) for value in self._session.get_inputs()}
        self.outputs = {value.name: _tensor_type(value) for value in self._session.get_outputs()}

    def placed_nodes(self) -> tuple[PlacedNode, ...]:
        """All nodes after ONNX Runtime's optimisations, in their order."""
        return tuple(
            PlacedNode(node.name, node.domain, node.op_type, part.ep_name)
            for part in self._session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        )

    def new_binding(self) -> Any:
        """An empty onnxruntime.IOBinding of this session."""
        return self._session.io_binding()

    def run(self, binding: Any) -> None:
        """Run with everything bound; outputs are in their buffers on return.

        Raises:
            SessionError: a kernel failed. The states bound for output are undefined afterwards.
        """
        self._run(binding, self._eager)

    def replaying(self, graph: int) -> CapturedRun:
        """Runs of one captured step, by a number from 1 on.

        The first run computes the step several times, and captures it. Later ones replay it, with the shapes and
        addresses of the first, whatever is bound.
        """
        assert self.captures, "this provider captures nothing"
        return CapturedRun(self._run, _run_options(graph))

    def _check_host_operators(self, placement: Placement) -> None:
        """Refuse a graph of which the CPU computes more than it may beside a device.

        Raises:
            SessionError: an operator has no kernel on the device.
        """
        on_host = {node.op_type for node in self.placed_nodes() if node.provider == CPU}
        if odd := on_host - placement.host_operators:
            raise SessionError(
                f"{placement.first} has no kernel for {', '.join(sorted(odd))} of this graph, and the CPU would compute"
                " it: export the checkpoint with --weights fp32, or with --target cuda"
            )

    def _run(self, binding: Any, options: Any) -> None:
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:
            text = _explained(error, on_device=self.is_on_device)
            raise SessionError(f"ONNX Runtime failed to run a step: {text}") from error


class CapturedRun(Struct, frozen=True):
    """A Runnable that replays one CUDA graph: see Session.replaying()."""

    _run: Callable[[Any, Any], None]
    _options: Any

    def run(self, binding: Any) -> None:
        """As Session.run."""
        self._run(binding, self._options)


def _check_libraries(placement: Placement) -> None:
    """ONNX Runtime only logs why it cannot load a provider.

    Raises:
        SettingsError: the first provider needs a library that this machine lacks.
    """
    name = _PROVIDER_LIBRARIES.get(placement.first)
    if name is None:
        return
    from qwonnx.runtime.cuda.libraries import missing_library

    folder = Path(onnxruntime.__file__).parent / "capi"
    if missing := missing_library(folder / f"libonnxruntime_providers_{name}.so"):
        raise SettingsError(
            f"{placement.first} needs {missing}, which cannot be loaded: install the extra gpu, which brings CUDA's"
            " libraries, or add the library's folder to LD_LIBRARY_PATH"
        )


def _explained(error: Exception, *, on_device: bool) -> str:
    """An error of ONNX Runtime in one line, and what to do if a device lacks memory or its code."""
    text = _one_line(error)
    if on_device and _NO_MACHINE_CODE in text:
        return (
            f"onnxruntime-gpu {onnxruntime.__version__} has no machine code for this device: docs/cuda.md lists the"
            f" devices, and a newer release may have more ({text})"
        )
    if on_device and _NO_MEMORY.search(text):
        return (
            "the device has too little memory beside the weights and the states of sequences: give less cache_bytes or"
            f" max_num_batched_tokens, or end what else uses the device ({text})"
        )
    return text


def _named_providers(placement: Placement) -> list[tuple[str, dict[str, str]]] | None:
    """Providers for InferenceSession; None if the options have a plugin's devices."""
    return None if placement.plugin else [(name, dict(given)) for name, given in placement.providers.items()]


def _run_options(graph: int) -> Any:
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


def _tensor_type(value: Any) -> TensorType:
    name = str(value.type).removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(name, name)
    return TensorType(dtype, tuple(size if isinstance(size, int) else None for size in value.shape))


def check_version(manifest: Manifest) -> None:
    """Compare the installed ONNX Runtime with the artifact's minimum_onnxruntime.

    Raises:
        SessionError: the installed one is older.
    """
    installed, minimum = onnxruntime.__version__, manifest.minimum_onnxruntime
    if _version(installed) < _version(minimum):
        wants_gpu, has_gpu = manifest.target == CUDA_TARGET, CUDA in onnxruntime.get_available_providers()
        remedy = how_to_install("gpu" if wants_gpu else "cpu")
        if wants_gpu and not has_gpu:  # the two packages have the same files
            remedy = f"uninstall onnxruntime, and then {remedy}"
        elif has_gpu and not wants_gpu:
            remedy = (
                f"for the GPU, export with --target cuda; for the CPU, uninstall onnxruntime-gpu, and then {remedy}"
            )
        raise SessionError(f"the artifact needs ONNX Runtime {minimum} and {installed} is installed: {remedy}")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:3] if part.isdigit())


def _options(settings: RuntimeSettings, placement: Placement) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.num_threads or cpu_quota() or 0  # 0: one thread per physical core
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = settings.log_severity
    # Pack weights for their kernels in parallel at load time; by default they are packed one after the other.
    options.add_session_config_entry("session.prepack.enable_parallel", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if settings.spin else "0")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_MICROSECONDS))
    if placement.plugin:
        options.add_provider_for_devices(list(placement.plugin), dict(placement.providers[placement.first]))
    if CPU not in placement.providers and not placement.host_operators:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        # A kernel that packs a weight leaves its raw copy to the arena, which never gives it back to the device.
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    for entry in settings.session_options:
        name, _, value = entry.partition("=")
        options.add_session_config_entry(name, value)
    return options


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
