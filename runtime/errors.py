"""Everything the runtime can refuse or fail with. Each message is one line that names the cause and the remedy.

QwonnxRuntimeError
|-- SettingsError            a setting, or the environment variable it comes from, has an impossible value
|   `-- QuantityError        a size, a length or a number that is not written as one
|-- TokenizerError           the artifact's tokenizer.json cannot be used
|-- InvalidRequestError      the caller asked for something that cannot be served; names the parameter
|   `-- TemplateError        the chat template refuses the conversation, or is itself broken
|-- QueueFullError           too many requests wait already; try again later
|-- EngineClosedError        the engine was closed, or stopped because of a fault
|-- GuideError               an answer cannot go on in the form that was asked for; that request alone ends
|-- CapsuleError             a saved state cannot be used or kept; its prompt can still be read again
`-- SessionError             ONNX Runtime cannot load or run the graph

An artifact that cannot be opened raises qwonnx.runtime.artifact.manifest.ArtifactError, which is the format's own tree.
"""


class QwonnxRuntimeError(Exception):
    """The root of what qwonnx.runtime raises on purpose; anything else that escapes is a bug."""


class SettingsError(QwonnxRuntimeError):
    """A setting has an impossible value. The message names the setting or the environment variable."""


class QuantityError(SettingsError):
    """A size, a length or a count that a person wrote is not understood. The message names what it was for."""


class TokenizerError(QwonnxRuntimeError):
    """tokenizer.json is malformed, or is not the byte-level tokenizer this runtime decodes.

    reason is the phrase in brackets, for whoever has another remedy than the one that the message names.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"tokenizer.json is malformed ({reason}): export the checkpoint again")
        self.reason = reason


class InvalidRequestError(QwonnxRuntimeError):
    """A request that can never be served as it is.

    param is the request's parameter at fault ("temperature", "messages", ...), None if no single one is;
    code is a stable identifier of the cause for programs ("context_length_exceeded"), None for an ordinary bad value.
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
    """max_queued_requests requests wait already: the request was not accepted, and may be sent again later."""


class EngineClosedError(QwonnxRuntimeError):
    """The engine takes no more requests: it was closed, or its thread stopped because of a fault."""


class GuideError(QwonnxRuntimeError):
    """A guide that was accepted cannot go on: its grammar became too complex. Ends that request and no other."""


class CapsuleError(QwonnxRuntimeError):
    """A capsule that cannot be restored, or written. Nothing is lost but time: its conversation can be read again."""


class SessionError(QwonnxRuntimeError):
    """ONNX Runtime refused to load the graph or failed to run it."""
