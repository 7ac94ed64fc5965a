"""All errors that the runtime raises on purpose. Each message is one line that names the cause and the remedy.

QwonnxRuntimeError
|-- SettingsError            a setting or its environment variable has an invalid value
|   `-- QuantityError        a size, a length or a count is malformed
|-- AdapterError             a LoRA adapter is malformed, or does not fit the artifact
|-- TokenizerError           the artifact's tokenizer.json cannot be used
|-- InvalidRequestError      the request cannot be served as it is; names the parameter
|   `-- TemplateError        the chat template refuses the conversation, or is itself broken
|-- QueueFullError           too many requests wait; try again later
|-- EngineClosedError        the engine was closed, or stopped because of a fault
|-- GuideError               an answer cannot continue in the requested form; only its request ends
|-- CapsuleError             a saved state cannot be used or kept; its prompt can still be read again
|-- SessionError             ONNX Runtime cannot load or run the graph
|   `-- StageLostError       a stage of the model is gone, and the states in it
`-- NativeKernelsError       the library of native kernels is missing or cannot be used

An artifact that cannot be opened raises qwonnx.runtime.artifact.manifest.ArtifactError, the root of its own tree.
"""


class QwonnxRuntimeError(Exception):
    """The root of the errors that qwonnx.runtime raises on purpose; any other error is a bug."""


class SettingsError(QwonnxRuntimeError):
    """A setting has an invalid value. The message names the setting or the environment variable."""


class QuantityError(SettingsError):
    """A size, a length or a count is malformed. The message names the option or the variable."""


class AdapterError(QwonnxRuntimeError):
    """A LoRA adapter is malformed, of a kind that is not supported, or does not fit the artifact or the memory."""


class TokenizerError(QwonnxRuntimeError):
    """tokenizer.json is malformed, or is not the byte-level tokenizer this runtime decodes.

    reason is the phrase in brackets, for callers that name another remedy.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"tokenizer.json is malformed ({reason}): export the checkpoint again")
        self.reason = reason


class InvalidRequestError(QwonnxRuntimeError):
    """A request that cannot be served as it is.

    param is the request's parameter at fault ("temperature", "messages", ...), or None; code is a stable identifier of
    the cause for programs ("context_length_exceeded"), None for an ordinary invalid value.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class TemplateError(InvalidRequestError):
    """The chat template raised (its own message is kept), or cannot be parsed or rendered within bounds."""

    def __init__(self, message: str, param: str | None = "messages", code: str | None = None) -> None:
        super().__init__(message, param, code)


class QueueFullError(QwonnxRuntimeError):
    """max_queued_requests requests wait: the request was not accepted, and may be sent again later."""


class EngineClosedError(QwonnxRuntimeError):
    """The engine does not accept requests: it was closed, or its thread stopped because of a fault."""


class GuideError(QwonnxRuntimeError):
    """An accepted guide cannot continue: its grammar became too complex. Only its request ends."""


class CapsuleError(QwonnxRuntimeError):
    """A capsule cannot be restored or written. This costs only time: its conversation can be read again."""


class SessionError(QwonnxRuntimeError):
    """ONNX Runtime refused to load the graph or failed to run it."""


class StageLostError(SessionError):
    """A process that runs a stage is gone. The message names it. Requests that had states there have ended."""


class NativeKernelsError(QwonnxRuntimeError):
    """There is no library of native kernels, or it failed its checks. Graphs run without it."""
