"""Everything an export can refuse. Each message is one line that names the cause and the remedy.

ExportError
|-- CheckpointError            the checkpoint cannot be read
|   |-- ConfigError            config.json is missing or malformed, or holds a value that is not supported
|   |   `-- UnsupportedModelError   an architecture that is not Qwen 3.5
|   |-- MissingTensorError     a weight or a shard that the model needs is not there
|   |-- UnusedTensorError      a weight that nothing uses
|   `-- TensorFormatError      a shard is truncated or malformed, or a tensor has another shape or dtype than it must
|-- RecipeError                a quantisation recipe cannot be applied
|-- CalibrationError           a calibration text cannot be used
|-- PlanError                  what a plan was asked for is not understood
|-- OutputError                the artifact cannot be written: it exists, the disk is full, ...
|-- VerificationError          `verify` or `eval` cannot run or compare models
`-- EvaluationError            a suite, a question or a text cannot be evaluated on
"""


class ExportError(Exception):
    """The root of what qwonnx.export raises for bad input; anything else that escapes is a bug."""


class CheckpointError(ExportError):
    """The checkpoint cannot be read."""


class ConfigError(CheckpointError):
    """config.json is missing, malformed, or holds a value that would change the maths."""


class UnsupportedModelError(ConfigError):
    """The checkpoint's architecture is not one qwonnx knows."""


class MissingTensorError(CheckpointError):
    """A tensor or a shard that the model needs is not there."""


class UnusedTensorError(CheckpointError):
    """A tensor of the checkpoint that no part of the model uses."""


class TensorFormatError(CheckpointError):
    """A shard is truncated or malformed, or a tensor has another shape or dtype than the model needs."""


class RecipeError(ExportError):
    """A quantisation recipe is malformed, or asks for what a weight cannot have."""


class CalibrationError(ExportError):
    """A calibration text cannot be read, or is too short."""


class PlanError(ExportError):
    """A size, a length or a limit that `plan` was given is not understood."""


class OutputError(ExportError):
    """The artifact cannot be written."""


class VerificationError(ExportError):
    """An artifact or a checkpoint cannot be run, or two cannot be compared."""


class EvaluationError(ExportError):
    """A suite, one of its questions or a text cannot be evaluated on, or a model under evaluation fails."""


def first_line(error: BaseException) -> str:
    """The first line of another library's message; some have hundreds, some none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
