"""The errors of an export. Each message is one line that names the cause and the remedy.

ExportError
|-- CheckpointError            the checkpoint cannot be read
|   |-- ConfigError            config.json is missing or malformed, or holds a value that is not supported
|   |   `-- UnsupportedModelError   an architecture that is not Qwen 3.5
|   |-- MissingTensorError     a weight or a shard that the model needs is not there
|   |-- UnusedTensorError      a weight that nothing uses
|   |-- TensorFormatError      a shard is truncated or malformed, or a tensor has the wrong shape or dtype
|   |-- AdapterError           an adapter cannot be merged into the checkpoint
|   `-- AccessError            a hub, a store or a disk does not let the checkpoint be read or copied
|-- RecipeError                a quantisation recipe cannot be applied
|-- CalibrationError           a calibration text cannot be used
|-- PlanError                  an argument of `plan` is not understood
|-- OutputError                the artifact cannot be written: it exists, the disk is full, ...
|   `-- OtherExportError     an interrupted export there was another one
|-- VerificationError          `verify` or `eval` cannot run or compare models
`-- EvaluationError            a suite, a question or a text cannot be used
"""


class ExportError(Exception):
    """The root of all errors that qwonnx.export raises for bad input; any other exception is a bug."""


class CheckpointError(ExportError):
    """The checkpoint cannot be read."""


class ConfigError(CheckpointError):
    """config.json is missing, malformed, or holds a value that would change the maths."""


class UnsupportedModelError(ConfigError):
    """qwonnx does not support the checkpoint's architecture."""


class MissingTensorError(CheckpointError):
    """A tensor or a shard that the model needs is not there."""


class UnusedTensorError(CheckpointError):
    """No part of the model uses a tensor of the checkpoint."""


class TensorFormatError(CheckpointError):
    """A shard is truncated or malformed, or a tensor has another shape or dtype than the model needs."""


class AdapterError(CheckpointError):
    """An adapter is malformed, of a kind that is not merged, or does not fit the checkpoint."""


class AccessError(CheckpointError):
    """A hub, a store or a disk does not let a checkpoint be read or copied; this says nothing about the checkpoint."""


class RecipeError(ExportError):
    """A quantisation recipe is malformed, or cannot be applied to a weight."""


class CalibrationError(ExportError):
    """A calibration text cannot be read, or is too short."""


class PlanError(ExportError):
    """`plan` does not understand a size, a length or a limit."""


class OutputError(ExportError):
    """The artifact cannot be written."""


class OtherExportError(OutputError):
    """An interrupted export had another checkpoint or other options, so this one cannot continue it."""


class VerificationError(ExportError):
    """An artifact or a checkpoint cannot be run, or two of them cannot be compared."""


class EvaluationError(ExportError):
    """A suite, one of its questions or a text cannot be used, or a model under evaluation fails."""


def first_line(error: BaseException) -> str:
    """The first line of another library's message, which may have hundreds of lines or none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
