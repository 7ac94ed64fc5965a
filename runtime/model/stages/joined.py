"""What an engine sees of a model in stages: one artifact, one session, and whether all stages are there."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from qwonnx.runtime.artifact.file_names import DECODER, NEXT_HIDDEN_STATES
from qwonnx.runtime.artifact.folder import Artifact
from qwonnx.runtime.artifact.manifest import GraphSpec, Manifest, StateSpec
from qwonnx.runtime.cache.buffers import StateBuffers
from qwonnx.runtime.errors import SettingsError, StageLostError
from qwonnx.runtime.model.session import Session, TensorType
from qwonnx.runtime.model.stages.address import StageAddress
from qwonnx.runtime.model.stages.link import StageLink
from qwonnx.runtime.model.stages.staged_buffers import FarStage, StagedBuffers
from qwonnx.runtime.model.stages.step import StageLimits
from qwonnx.runtime.settings import RuntimeSettings

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 120.0  # for stages that still load when the engine starts
_TEND_SECONDS = 0.5
_IDLE_SECONDS = 2.0
_COMPLAINT_SECONDS = 30.0


class JoinedSession:
    """The first stage's session, with the inputs and outputs of the whole model."""

    captures = False
    is_on_device = False

    def __init__(self, first: Session, far_states: Sequence[StateSpec], vocab_size: int) -> None:
        self._first = first
        self.own_inputs = frozenset(first.inputs)
        self.inputs = first.inputs | {state.past: _type_of(state) for state in far_states}
        self.inputs["logit_positions"] = TensorType("int64", (None,))
        self.outputs = first.outputs | {state.present: _type_of(state) for state in far_states}
        del self.outputs[NEXT_HIDDEN_STATES]
        self.outputs["logits"] = TensorType("float32", (None, None, vocab_size))

    def new_binding(self) -> Any:
        """Of the first stage."""
        return self._first.new_binding()

    def run(self, binding: Any) -> None:
        """Run the first stage."""
        self._first.run(binding)

    def replaying(self, graph: int) -> Any:
        raise AssertionError("stages capture nothing")


class Stages:
    """The stages after the first, connected. A thread connects again with those that are lost.

    Attributes:
        artifact: of the whole model: all states, and an id that depends on all stages.
    """

    def __init__(self, first: Artifact, links: Sequence[StageLink]) -> None:
        self._first, self._links = first, tuple(links)
        self._far = [FarStage(link, link.manifest.graphs[DECODER].states) for link in links]
        self.artifact = Artifact(first.folder, _joined(first.manifest, [link.manifest for link in links]))
        self._seen = self._epochs()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._tend, name="qwonnx-stages", daemon=True)
        self._thread.start()

    @classmethod
    def connect(cls, artifact: Artifact, settings: RuntimeSettings) -> Stages | None:
        """Connect with the stages that the settings name, which may still load; None for a whole model.

        Raises:
            SettingsError: the artifact and the named stages do not belong together, or a key is missing.
            StageLostError: a stage does not answer.
        """
        facts, addresses = artifact.manifest.stage, settings.stages
        if facts.is_whole and not addresses:
            return None
        where = artifact.folder
        if facts.is_whole:
            raise SettingsError(f"{where} has the whole model, and stages names others: export with --stages")
        if facts.number != 1:
            raise SettingsError(
                f"{where} is stage {facts.number} of {facts.count}: start it with `qwonnx stage`, and open stage 1"
            )
        if len(addresses) != facts.count - 1:
            raise SettingsError(
                f"{where} is stage 1 of {facts.count} and stages names {len(addresses)} others: give the addresses of"
                f" the other {facts.count - 1}, in their order"
            )
        links = []
        for number, text in enumerate(addresses, 2):
            address = StageAddress.parse(text)
            address.check_key(settings.stage_key)
            links.append(StageLink(address, dataclasses.replace(facts, number=number), settings.stage_key))
        end = time.monotonic() + _WAIT_SECONDS
        try:
            for link in links:
                _connect_until(link, end)
            return cls(artifact, links)
        except BaseException:
            for link in links:
                link.close()
            raise

    @property
    def are_connected(self) -> bool:
        return all(link.is_connected for link in self._links)

    def session(self, first: Session) -> JoinedSession:
        """The first stage's session as the whole model's."""
        states = [state for stage in self._far for state in stage.states]
        return JoinedSession(first, states, self.artifact.manifest.model.vocab_size)

    def make_buffers(self, session: JoinedSession, max_tokens: int, num_rows: int, max_model_len: int) -> StateBuffers:
        """Rows in all stages.

        Args:
            session: of these stages.
            max_tokens: of a step.
            num_rows, max_model_len: of the rows.

        Raises:
            MemoryError: there is no room here.
            StageLostError: a stage is gone, or has no room.
        """
        return StagedBuffers(
            self._first.decoder.states,
            self._far,
            StageLimits(num_rows, max_model_len, max_tokens),
            self.artifact.manifest.model.hidden_size,
            session.own_inputs,
        )

    def newly_lost(self) -> str | None:
        """Which stages lost their states since the last call, for messages; None: none did."""
        now = self._epochs()
        lost = [link.name for link, old, new in zip(self._links, self._seen, now, strict=True) if old != new]
        self._seen = now
        if not lost:
            return None
        return f"{', '.join(lost)} was lost, and the states of this request with it: send the request again"

    def close(self) -> None:
        """End the connections; idempotent."""
        self._closing.set()
        for link in self._links:
            link.close()

    def _epochs(self) -> tuple[int, ...]:
        return tuple(link.epoch for link in self._links)

    def _tend(self) -> None:
        complained_at = -_COMPLAINT_SECONDS
        while not self._closing.wait(_TEND_SECONDS):
            for link in self._links:
                try:
                    link.tend(_IDLE_SECONDS)
                except (StageLostError, SettingsError) as error:
                    if time.monotonic() - complained_at >= _COMPLAINT_SECONDS:
                        complained_at = time.monotonic()
                        logger.warning("%s", error)
                if self._closing.is_set():
                    link.close()


def _connect_until(link: StageLink, end: float) -> None:
    while True:
        try:
            link.connect()
            return
        except StageLostError:
            if time.monotonic() >= end:
                raise
            time.sleep(_TEND_SECONDS)


def _joined(first: Manifest, others: Sequence[Manifest]) -> Manifest:
    """The first stage's manifest, with the states of all. Its digest depends on all manifests."""
    graphs = [each.graphs[DECODER] for each in (first, *others)]
    decoder = GraphSpec(
        file=graphs[0].file,
        inputs=graphs[0].inputs,
        outputs=graphs[-1].outputs,
        states=tuple(state for graph in graphs for state in graph.states),
        native_operators=graphs[0].native_operators,
    )
    digest = hashlib.sha256("".join(repr(each.files) for each in others).encode()).hexdigest()
    parameters = sum(each.model.num_parameters for each in (first, *others))
    return dataclasses.replace(
        first,
        model=dataclasses.replace(first.model, num_parameters=parameters),
        graphs={DECODER: decoder},
        stage=dataclasses.replace(first.stage, export=digest),
    )


def _type_of(state: StateSpec) -> TensorType:
    return TensorType(state.dtype, tuple(size if isinstance(size, int) else None for size in state.shape))
