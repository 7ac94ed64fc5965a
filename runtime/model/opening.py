"""The part of a start that takes processor time outside of Python: the weight files, the session, and where it runs."""

from __future__ import annotations

from msgspec import Struct

from qwonnx.runtime.artifact.folder import Artifact
from qwonnx.runtime.model.artifact_placement import place_artifact
from qwonnx.runtime.model.placement import Placement, check_device
from qwonnx.runtime.model.session import Session, check_version
from qwonnx.runtime.model.weight_files import WeightFiles
from qwonnx.runtime.settings import RuntimeSettings


class OpenedModel(Struct, frozen=True):
    """An artifact's decoder, loaded.

    weights: its files, which the session maps.
    """

    weights: WeightFiles
    placement: Placement
    session: Session


def open_model(artifact: Artifact, settings: RuntimeSettings, max_model_len: int) -> OpenedModel:
    """Load an artifact's decoder. Holds Python's lock for a small part of its time.

    Args:
        artifact: the artifact.
        settings: device, kernels, threads, and the largest steps.
        max_model_len: the longest sequence.

    Raises:
        ArtifactFileError: a weight file cannot be opened.
        SettingsError, NativeKernelsError: the machine cannot meet a setting.
        SessionError: the artifact needs a newer ONNX Runtime, or ONNX Runtime cannot load it.
    """
    check_version(artifact.manifest)
    weights = WeightFiles(artifact)
    placement = place_artifact(artifact, settings, max_model_len)
    check_device(placement.device, artifact.manifest)
    graph = placement.graph or artifact.file(artifact.decoder.file)
    session = Session(graph, settings, artifact.decoder.native_operators, placement)
    weights.check_mapped()
    return OpenedModel(weights, placement, session)
