"""The engine: requests in, deltas of answers out, one step at a time.

    submit -> step: take in -> schedule -> run -> sample -> commit -> deliver

One thread owns the session, the cache and the scheduler; other threads use the mailbox. A step that fails ends only the
requests in it.

admission.py checks requests. This file is longer than most: it documents the whole public interface, and it keeps the
order of events in one place.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import threading
import time
from collections import abc
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from qwonnx.runtime.cache import baked_prefixes
from qwonnx.runtime.cache.buffers import BuffersFactory
from qwonnx.runtime.cache.capsule import decode, encode, is_finite
from qwonnx.runtime.cache.host_buffers import HostBuffers
from qwonnx.runtime.cache.hybrid_cache import HybridCache
from qwonnx.runtime.cache.owners import adapter_of, owner_with
from qwonnx.runtime.cache.prefix_cache import PrefixCacheAccount
from qwonnx.runtime.cache.rows import CacheSnapshot, RowMove
from qwonnx.runtime.engine.adapters import Adapters
from qwonnx.runtime.engine.admission import Admission
from qwonnx.runtime.engine.generation import Generation
from qwonnx.runtime.engine.mailbox import Mailbox
from qwonnx.runtime.engine.metrics import SECONDS, EngineMetrics, Histogram, MetricsSnapshot
from qwonnx.runtime.engine.prefix_reuse import PrefixReuse
from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.engine.startup import StartUp
from qwonnx.runtime.errors import (
    CapsuleError,
    GuideError,
    SessionError,
    SettingsError,
    StageLostError,
)
from qwonnx.runtime.model import expert_uses
from qwonnx.runtime.model import files as model_files
from qwonnx.runtime.model.inputs import HOST_INPUTS
from qwonnx.runtime.model.opening import OpenedModel, open_model
from qwonnx.runtime.model.runner import ModelRunner
from qwonnx.runtime.model.session import StepSession
from qwonnx.runtime.model.weight_memory import WeightMemory
from qwonnx.runtime.native.choice import KernelChoice
from qwonnx.runtime.sampling.grammar import GrammarCompiler
from qwonnx.runtime.sampling.guide import Guide
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.scheduling import row_budget
from qwonnx.runtime.scheduling.scheduler import Scheduler, violations
from qwonnx.runtime.scheduling.sequence import Sequence, StepPlan
from qwonnx.runtime.settings import RuntimeSettings
from qwonnx.runtime.text.chat_template import ChatTemplate
from qwonnx.runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:  # not needed by a model without stages, which starts sooner
    from qwonnx.runtime.adapters.slots import SlotsSnapshot
    from qwonnx.runtime.model.stages.joined import Stages

logger = logging.getLogger(__name__)

# After this many failed steps in a row, the session counts as broken.
_BROKEN_AFTER = 3


class Engine:
    """One artifact, ready to answer. open() makes it; as a context manager it closes itself."""

    def __init__(
        self,
        model: model_files.ModelFiles,
        settings: RuntimeSettings,
        max_model_len: int,
        make_buffers: BuffersFactory | None = None,
        startup: StartUp | None = None,
        opened: OpenedModel | None = None,
        stages: Stages | None = None,
    ) -> None:
        facts = model.artifact.manifest.model
        self.startup = startup or StartUp()
        self.artifact: Artifact = model.artifact
        self.settings = settings
        self.tokenizer: Tokenizer = model.tokenizer
        self.chat_template: ChatTemplate | None = model.chat_template
        self.default_sampling: SamplingParams = model.default_sampling
        self.eos_token_ids: frozenset[int] = model.eos_token_ids
        states = model.artifact.decoder.states
        opened = opened or open_model(self.artifact, settings, max_model_len)
        self._weights, placement, session = opened.weights, opened.placement, opened.session
        self._stages = stages
        runnable: StepSession = session
        self.kernels: KernelChoice = session.kernels
        for warning in filter(None, (placement.note, self.kernels.missing)):
            logger.warning("%s", warning)
        with self.startup.phase("weights"):
            self._memory = WeightMemory(self._weights, session.experts, settings, expert_uses.load(self.artifact))
            self._memory.start()
        self._adapters = Adapters(model.artifact.manifest.adapter_targets, settings, self._wake)
        if placement.device is None:
            make_buffers = make_buffers or HostBuffers
            free = self._memory.free_bytes
            if free is not None:
                free = max(0, free - self._adapters.num_bytes)
            budget, self.max_model_len = row_budget.settle(states, settings, max_model_len, free)
        else:
            from qwonnx.runtime.cache.device_buffers import DeviceBuffers  # needs CUDA's calls

            make_buffers = make_buffers or partial(
                DeviceBuffers, device=placement.device, host_inputs=HOST_INPUTS, in_place=placement.in_place
            )
            free = placement.device.memory().free_bytes // (1 if placement.in_place else 2)
            budget, self.max_model_len = row_budget.settle_reserved(states, settings, max_model_len, free)
        num_tokens = min(facts.vocab_size, model.tokenizer.num_tokens)
        self._compile_seconds = Histogram(SECONDS)
        self._grammars = GrammarCompiler(
            model.tokenizer, model.eos_token_ids, num_tokens, on_compiled=self._compile_seconds.observe
        )
        self._admission = Admission(
            model.tokenizer, model.eos_token_ids, num_tokens, self.max_model_len, self._grammars
        )
        chunk = min(settings.max_num_batched_tokens, self.max_model_len)
        if stages is not None:
            if placement.device is not None:
                raise SettingsError("stages run on the CPU: leave the device out")
            runnable = joined = stages.session(session)
            max_tokens = max(chunk, settings.max_num_seqs)
            make_buffers = lambda states, rows, length: stages.make_buffers(joined, max_tokens, rows, length)  # noqa: E731
        self._scheduler = Scheduler(
            settings.max_num_seqs, chunk, self._begin, budget, joins_pasts=placement.joins_pasts
        )
        with self.startup.phase("states"):
            self._cache = HybridCache(states, settings.max_num_seqs, self.max_model_len, budget.max_bytes, make_buffers)
            self._reuse = PrefixReuse(self._cache, settings.prefix_cache_bytes)
            # A stage that restarts has lost them, so a model in stages has none.
            for capsule in () if stages else baked_prefixes.load(self.artifact, self.max_model_len - 1):
                self._reuse.add_permanent(capsule)
        self._runner = ModelRunner(
            runnable,
            states,
            self._cache,
            settings.max_num_seqs,
            chunk,
            facts.vocab_size,
            self._adapters.numbers,
        )
        self._generations: dict[str, Generation] = {}  # by request id, those that the scheduler knows
        self._metrics = EngineMetrics()
        self._failures = 0  # failed steps in a row
        self._is_warm = False
        max_queued = settings.max_queued_requests
        self._mailbox = Mailbox(max_queued + settings.max_num_seqs, max_queued)

    @classmethod
    def open(
        cls,
        artifact: str | os.PathLike[str] | Artifact,
        settings: RuntimeSettings | None = None,
        *,
        make_buffers: BuffersFactory | None = None,
        startup: StartUp | None = None,
    ) -> Engine:
        """Load an artifact: session, states, baked prefixes, tokenizer, template. Does not start a thread.

        Args:
            artifact: its folder, or the opened one.
            settings: the defaults if None.
            make_buffers: makes the memory of the rows, which the artifact's provider must be able to read. None: in the
                host's memory, or on the device that the artifact is for.
            startup: gets the phases.

        Raises:
            ArtifactError: the folder is not an artifact, or this version cannot read it.
            SettingsError: the model or the machine cannot meet a setting, or stages are missing.
            StageLostError: a stage does not answer.
            NativeKernelsError: the settings ask for native kernels, and the artifact cannot have them here.
            TokenizerError, TemplateError, SessionError: a file of the artifact cannot be used.
        """
        settings = settings or RuntimeSettings()
        startup = startup or StartUp()
        opened = artifact if isinstance(artifact, Artifact) else open_artifact(artifact)
        stages = _connect_stages(opened, settings, startup)
        if stages is not None:
            opened = stages.artifact
        try:
            max_model_len = model_files.settle_max_model_len(opened.manifest.model, settings)
            with ThreadPoolExecutor(1, "qwonnx-session") as beside:
                with_session = beside.submit(_open_model, startup, opened, settings, max_model_len)
                with startup.phase("files"):
                    model = model_files.load(opened)
                session = with_session.result()
            return cls(model, settings, max_model_len, make_buffers, startup, session, stages)
        except BaseException:
            if stages is not None:
                stages.close()
            raise

    @property
    def is_ready(self) -> bool:
        """True after warm_up(), while steps succeed and all stages are there, and until the engine is closed."""
        if self._stages is not None and not self._stages.are_connected:
            return False
        return self._is_warm and not self._mailbox.is_closed and self._failures < _BROKEN_AFTER

    @property
    def num_live_requests(self) -> int:
        """Accepted requests that have not finished, including waiting ones."""
        return self._mailbox.num_live

    def start(self) -> None:
        """Start the engine thread; does nothing if it runs.

        Raises:
            EngineClosedError: the engine was closed.
        """
        self._mailbox.start(self._serve)

    def close(self) -> None:
        """Stop the thread and end all requests with ABORT. Returns when that is done; idempotent."""
        thread = self._mailbox.close()
        if thread is None:
            self._end_all(FinishReason.ABORT)
        elif thread is not threading.current_thread():
            thread.join()
        self._adapters.close()
        self._memory.close()
        self._weights.close()
        if self._stages is not None:
            self._stages.close()

    def submit(
        self,
        prompt_token_ids: abc.Sequence[int],
        params: SamplingParams,
        on_output: abc.Callable[[RequestOutput], None],
        *,
        request_id: str | None = None,
        snapshot_at: abc.Sequence[int] = (),
        deadline: float | None = None,
        owner: str = "",
        generated: abc.Sequence[int] = (),
        adapter: str = "",
    ) -> str:
        """Accept a request, from any thread, and return its id. Does not start a thread; start() does.

        Args:
            prompt_token_ids: at least one id; the tokenizer must know all of them.
            params: sampling and where to stop.
            on_output: called on the engine thread with every delta. The last one, and only that, has a finish_reason.
                It must not block. If it raises, the request is aborted.
            request_id: unique among live requests; generated if None.
            snapshot_at: positions in the prompt at which to keep its state, in addition to every few thousand tokens.
                Good positions are those after which other prompts are likely to differ, such as the ends of a chat's
                turns.
            deadline: a time.monotonic() value. Within one step after it, the request ends with DEADLINE and the answer
                so far, even if the request still waits.
            owner: whom the request is for, such as a hash of an API key. Prefixes that it leaves behind are found only
                by requests of the same owner, so that times do not tell one owner about another. Baked prefixes are
                everybody's.
            generated: tokens of the answer that an earlier request with the same prompt and parameters has given. The
                answer goes on after them: penalties, the seed, stop strings, the guide and max_tokens count them, and
                outputs do not repeat them.
            adapter: the name of the adapter that answers; empty: the model itself. The request waits until the adapter
                lies in a slot.

        Raises:
            InvalidRequestError: an empty prompt, an unknown token id, a prompt that leaves no room, a guide that
                cannot be followed, an answer that has ended before, or an unknown adapter.
            QueueFullError: max_queued_requests wait already, or too many guides are being compiled.
            EngineClosedError: the engine was closed.
        """
        found = self._adapters.find(adapter) if adapter else None
        prompt = list(prompt_token_ids)
        boundaries = self._reuse.boundaries(prompt, snapshot_at)
        generation = self._admission.admit(
            prompt,
            params,
            on_output,
            request_id=request_id,
            boundaries=boundaries,
            deadline=deadline,
            owner=owner if found is None else owner_with(owner, found.digest),
            generated=tuple(generated),
            adapter=found,
        )
        self._mailbox.accept(generation)
        return generation.request_id

    def adapters(self) -> abc.Mapping[str, str]:
        """The digests of the adapters by their names; from any thread."""
        return {name: adapter.digest for name, adapter in self._adapters.named().items()}

    def has_adapter(self, name: str) -> bool:
        """Whether there is an adapter of this name; from any thread."""
        return name in self._adapters.named()

    def adapter_owner(self, adapter: str, owner: str = "") -> str:
        """The owner of the states that an adapter leaves behind, for capsules and prefixes.

        Args:
            adapter: its name; empty: none.
            owner: see submit().

        Raises:
            InvalidRequestError: there is none of this name.
        """
        return owner_with(owner, self._adapters.find(adapter).digest) if adapter else owner

    def adapter_slots(self) -> SlotsSnapshot | None:
        """Which adapters lie in slots, and how often they were loaded; None without slots. From any thread."""
        return self._mailbox.ask(self._adapters.snapshot)

    def load_adapter(self, name: str, folder: str | os.PathLike[str]) -> str:
        """Take up an adapter, in the place of one of the same name; requests that run go on. From any thread.

        Returns:
            its digest.

        Raises:
            AdapterError: it cannot be used.
            SettingsError: the artifact takes no adapters, or the settings have no slots for others.
        """
        return self._adapters.load(name, Path(folder)).digest

    def unload_adapter(self, name: str) -> None:
        """Refuse new requests for an adapter; those that run go on. From any thread.

        Raises:
            InvalidRequestError: there is none of this name.
        """
        self._adapters.unload(name)

    def compile_guide(self, guide: Guide, *, owner: str = "") -> Future[Any]:
        """Start to check and compile a guide in an engine's thread. Otherwise submit() compiles it and waits.

        Args:
            guide: the form of an answer.
            owner: see submit().

        Raises:
            InvalidRequestError: raised by the future: the guide cannot be followed.
            QueueFullError: too many guides are being compiled.
            EngineClosedError: the engine was closed.
        """
        return self._grammars.compile(guide, owner)

    def abort(self, request_id: str, *, keep: bool = False) -> None:
        """End a request with ABORT within one step, from any thread; unknown and finished ids are ignored.

        Args:
            request_id: of submit().
            keep: keep its state as a prefix if it fits, of all its tokens but the last, for save_capsule().
        """
        self._mailbox.abort(request_id, keep=keep)

    def generate(
        self,
        prompt_token_ids: abc.Sequence[int],
        params: SamplingParams,
        *,
        deadline: float | None = None,
        snapshot_at: abc.Sequence[int] = (),
        adapter: str = "",
    ) -> abc.Generator[RequestOutput, None, None]:
        """Submit on the first next() and yield all outputs; closing the iterator aborts the request.

        Args:
            prompt_token_ids, params, deadline, snapshot_at, adapter: see submit().

        Raises:
            the errors of submit().
        """
        outputs: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
        self.start()
        request_id = self.submit(
            prompt_token_ids, params, outputs.put, deadline=deadline, snapshot_at=snapshot_at, adapter=adapter
        )
        try:
            while True:
                output = outputs.get()
                yield output
                if output.finish_reason is not None:
                    return
        finally:
            self.abort(request_id)

    def capture(self) -> int:
        """On a device that captures, record its decoding steps for replay; warm_up() does it. No request may run yet.

        Returns:
            the number of recorded steps.

        Raises:
            SessionError: the device failed.
        """
        return self._runner.capture()

    def warm_up(self) -> None:
        """Run a request with a prompt of one token through the whole path; is_ready is true afterwards.

        Raises:
            SessionError: the model cannot answer.
        """
        params = SamplingParams(temperature=0, max_tokens=min(2, self.max_model_len - 1), ignore_eos=True)
        with self.startup.phase("warm-up"):
            self.capture()
            for output in self.generate(self.tokenizer.encode("Hello")[:1], params):
                if output.finish_reason is FinishReason.ERROR:
                    raise SessionError(output.error or "the warm-up failed")
        self._is_warm = True

    def step(self) -> list[RequestOutput]:
        """Take in new and aborted requests, run one step, deliver its outputs, and return them.

        The engine thread calls this. Without an engine thread, the caller may.
        """
        deliveries = self._take_in() + self._end_lost()
        while (sequence := self._scheduler.overflowing()) is not None:
            self._preempt(self._generations[sequence.request_id])
        plan = self._scheduler.schedule()
        if plan is not None:
            deliveries += self._run(plan)
        for generation, output in deliveries:
            self._deliver(generation, output)
        return [output for _, output in deliveries]

    def check(self) -> list[str]:
        """Errors in the accounting between two steps, for tests; empty if it is consistent. From any thread."""
        return self._mailbox.ask(self._violations)

    def save_capsule(self, token_ids: abc.Sequence[int], *, compress: bool = False, owner: str = "") -> bytes | None:
        """The owner's longest kept prefix of these tokens as a capsule, or None if no state is kept.

        From any thread; waits for the running step.

        Args:
            token_ids: of a prompt that was read; its `snapshot_at` chose the positions.
            compress: with zstd; `load_capsule` detects it.
            owner: see submit().

        Raises:
            CapsuleError: compress is set and zstandard is not installed.
            EngineClosedError: the engine was closed.
        """
        segments = self._mailbox.ask(lambda: self._reuse.kept_segments(token_ids, owner))
        if not segments:
            return None
        kept = token_ids[: sum(segment.num_tokens for segment in segments)]
        parts = self._cache.buffers.to_host(segments)
        return encode(self._states_id(owner), self.artifact.decoder.states, kept, parts, compress=compress)

    def kept_tokens(self, token_ids: abc.Sequence[int], *, owner: str = "") -> int:
        """Number of tokens in the owner's longest kept prefix of these tokens; from any thread.

        Raises:
            EngineClosedError: the engine was closed.
        """
        return self._mailbox.ask(lambda: self._reuse.kept_tokens(token_ids, owner))

    def is_baked(self, token_ids: abc.Sequence[int]) -> bool:
        """Whether the artifact has a baked prefix of exactly these tokens; from any thread.

        Raises:
            EngineClosedError: the engine was closed.
        """
        return self._mailbox.ask(lambda: self._reuse.is_permanent(token_ids))

    def is_broken(self, token_ids: abc.Sequence[int], *, owner: str = "") -> bool:
        """Whether a prompt failed with the kept prefix of exactly these tokens, and succeeded without.

        From any thread; does not wait for the running step.
        """
        return self._reuse.is_broken(token_ids, owner)

    def load_capsule(self, data: bytes, *, owner: str = "") -> int:
        """Load a capsule: the owner's prompts that begin with its tokens continue from there while the cache keeps it.

        From any thread; waits for the running step.

        Returns:
            Its number of tokens, 0 if it does not fit prefix_cache_bytes.

        Raises:
            CapsuleError: it is damaged, or of another artifact.
            EngineClosedError: the engine was closed.
        """
        capsule = decode(data, self._states_id(owner), self.artifact.decoder.states, self.max_model_len - 1)
        if self._admission.unknown_token(capsule.token_ids) is not None:
            raise CapsuleError("the capsule has token ids that the tokenizer does not know: write it again")
        if not is_finite(capsule, self.artifact.decoder.states):
            raise CapsuleError("the capsule has states that are not finite numbers: write it again")
        return self._mailbox.ask(lambda: self._reuse.take_up(capsule, owner))

    def capsule_tokens(self, data: bytes, *, owner: str = "") -> tuple[int, ...]:
        """The tokens of a capsule, which is checked as load_capsule() does; it is not loaded.

        Raises:
            CapsuleError: it is damaged, or of another artifact.
        """
        return decode(data, self._states_id(owner), self.artifact.decoder.states, self.max_model_len - 1).token_ids

    def before_snapshot(self) -> None:
        """Before the process is copied: end the child processes that check guides; later ones start anew."""
        self._grammars.rest()

    def after_restore(self) -> None:
        """After the process was copied: what is checked from time to time is checked with the next step."""
        self._mailbox.ask(self._check_at_once)

    def metrics(self) -> MetricsSnapshot:
        """The engine's counters; from any thread."""
        rows = self._cache.snapshot()
        return self._metrics.snapshot(
            num_waiting=self._scheduler.num_waiting + self._mailbox.num_arrived + self._adapters.num_waiting,
            num_running=self._scheduler.num_running,
            max_rows=self.settings.max_num_seqs,
            cache_bytes=rows.used_bytes,
            max_cache_bytes=rows.max_bytes,
            prefix_cache_bytes=self._reuse.used_bytes,
            max_prefix_cache_bytes=self.settings.prefix_cache_bytes,
            experts=self._memory.account(),
            adapters=self._adapters.snapshot(),
            compile_seconds=self._compile_seconds.snapshot(),
        )

    def expert_uses(self) -> list[list[int]]:
        """How many tokens went to each expert so far, by layer; empty without native kernels. From any thread."""
        return self._memory.uses()

    def row_account(self) -> CacheSnapshot:
        """Accounting of the rows, between two steps."""
        return self._cache.snapshot()

    def prefix_account(self) -> PrefixCacheAccount:
        """Accounting of the prefix cache, between two steps."""
        return self._reuse.account()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_at_once(self) -> None:
        self._weights.check_at_once()
        self._memory.adjust_at_once()

    def _states_id(self, owner: str) -> str:
        """The artifact's id in capsules; states of an adapter have another one."""
        digest = adapter_of(owner)
        if not digest:
            return self.artifact.id
        return hashlib.sha256(bytes.fromhex(self.artifact.id) + bytes.fromhex(digest)).hexdigest()

    def _wake(self) -> None:
        self._mailbox.post(lambda: None)

    def _violations(self) -> list[str]:
        unread = [name for name, g in self._generations.items() if g.sequence.is_prefilling]
        placed = sum(bool(each.sequence.adapter_slot) for each in self._generations.values())
        found = violations(self._scheduler.snapshot(), self._cache.snapshot(), unread)
        return found + self._adapters.violations(placed) + self._reuse.violations(self._generations.values())

    def _begin(self, sequence: Sequence, row: int) -> None:
        """Restore what is known of a sequence, before its first chunk and again after a preemption."""
        generation = self._generations[sequence.request_id]
        sequence.num_computed = self._reuse.begin(generation, row)
        if not generation.has_begun:
            generation.has_begun = True
            generation.num_cached_tokens = min(sequence.num_computed, sequence.num_prompt_tokens)
            self._metrics.count_beginning(generation)

    def _serve(self) -> None:
        """The engine thread."""
        reason, error = FinishReason.ABORT, None
        try:
            while self._mailbox.wait(lambda: len(self._generations) > self._adapters.num_waiting):
                self.step()
        except Exception:
            logger.exception("the engine stopped because of a fault in qwonnx")
            reason, error = FinishReason.ERROR, "the engine stopped because of a fault: see the server's log"
        finally:
            self._end_all(reason, error)

    def _take_in(self) -> list[tuple[Generation, RequestOutput]]:
        mail = self._mailbox.take()
        for call in mail.calls:
            call()
        for generation in mail.arrived:
            self._generations[generation.request_id] = generation
            generation.begin()
            if not self._adapters.wait(generation):
                self._scheduler.add(generation.sequence)
        ended = {name: FinishReason.ABORT for name in mail.aborted if name in self._generations}
        now = time.monotonic()
        for name, generation in self._generations.items():
            if generation.deadline is not None and generation.deadline <= now:
                ended.setdefault(name, FinishReason.DEADLINE)
        for name in mail.kept & ended.keys():
            self._keep_state(self._generations[name])
        doomed = [(self._generations[name], reason) for name, reason in ended.items()]
        deliveries = [(generation, self._end(generation, reason)) for generation, reason in doomed]
        for generation, error in self._adapters.advance(lambda each: self._scheduler.add(each.sequence)):
            deliveries.append((generation, self._end(generation, FinishReason.ERROR, str(error))))
        return deliveries

    def _run(self, plan: StepPlan) -> list[tuple[Generation, RequestOutput]]:
        generations = [self._generations[sequence.request_id] for sequence in plan.sequences]
        try:
            self._weights.check()
            self._memory.adjust()
            logits = self._runner.run(plan)
        except StageLostError as error:
            ended = self._end_lost()
            rest = [g for g in generations if g.request_id in self._generations]
            return ended + [(g, self._end(g, FinishReason.ERROR, str(error))) for g in rest]
        except SessionError as error:
            self._failures += 1
            self._metrics.failed_steps += 1
            if plan.sequences[0].is_prefilling and len(generations) > 1:
                self._read_one_by_one(generations)
                return []
            return [(g, self._end(g, FinishReason.ERROR, str(error))) for g in generations if not self._reads_again(g)]
        self._failures = 0
        if plan.sequences[0].is_prefilling:
            for row, generation in enumerate(generations, plan.first_row):
                position = generation.sequence.num_computed + plan.num_tokens
                if position in generation.sequence.boundaries:
                    self._reuse.keep(generation, row, position)
        else:
            self._metrics.decoding_rows.observe(len(generations))
        chosen: list[int | SessionError | GuideError] = []
        sampled = plan.sampled
        answering = [generations[index] for index in sampled]
        for generation, index in zip(answering, sampled, strict=True):
            try:
                chosen.append(generation.choose(logits[index]))
            except (SessionError, GuideError) as error:
                chosen.append(error)
        for move in self._scheduler.commit(plan):
            self._cache.move(move)
        deliveries = []
        for generation, choice in zip(answering, chosen, strict=True):
            if isinstance(choice, (SessionError, GuideError)):
                if isinstance(choice, SessionError) and self._reads_again(generation):
                    continue
                reason = FinishReason.GUIDE if isinstance(choice, GuideError) else FinishReason.ERROR
                output = self._end(generation, reason, str(choice))
            else:
                self._reuse.convict(generation)
                output = generation.push(choice)
                self._metrics.count_token(generation)
                if output.finish_reason is not None:
                    self._forget(generation)
            deliveries.append((generation, output))
        return deliveries

    def _end_lost(self) -> list[tuple[Generation, RequestOutput]]:
        """If a stage lost its states, end all requests that have some, and forget kept ones; others go on to wait."""
        lost = None if self._stages is None else self._stages.newly_lost()
        if lost is None:
            return []
        has_row = [g for g in self._generations.values() if self._scheduler.row_of(g.sequence) is not None]
        ended = [(generation, self._end(generation, FinishReason.ERROR, lost)) for generation in has_row]
        self._reuse.forget()
        return ended

    def _end(self, generation: Generation, reason: FinishReason, error: str | None = None) -> RequestOutput:
        self._forget(generation)
        return generation.end(reason, error)

    def _forget(self, generation: Generation) -> None:
        """Free the row and the adapter of a finished request."""
        if not self._adapters.is_waiting(generation):
            self._leave_row(generation, self._scheduler.remove)
        self._adapters.forget(generation)
        del self._generations[generation.request_id]

    def _preempt(self, generation: Generation) -> None:
        """Take a running request's row; it continues later from the prefix cache, or from its tokens."""
        self._metrics.preemptions += 1
        self._keep_state(generation)
        self._leave_row(generation, self._scheduler.preempt)

    def _keep_state(self, generation: Generation) -> None:
        """Keep the state of a running request as a prefix, if it fits."""
        row = self._scheduler.row_of(generation.sequence)
        if row is not None and generation.sequence.num_computed:
            self._reuse.keep(generation, row, generation.sequence.num_computed)

    def _read_one_by_one(self, generations: abc.Sequence[Generation]) -> None:
        """After a failed step, read each of its prompts again alone: one of them may be the cause."""
        for generation in sorted(generations, key=lambda each: -each.sequence.arrival):  # the oldest is put back last
            generation.sequence.reads_alone = True
            self._leave_row(generation, self._scheduler.preempt)

    def _reads_again(self, generation: Generation) -> bool:
        """After a failure, read a prompt again that continued a kept prefix, without it; False if it did not.

        The prefix may be the cause: a damaged snapshot, capsule or baked prefix. If the prompt then succeeds, it was.
        """
        if not self._reuse.suspect(generation):
            return False
        logger.warning("request %s failed after a kept prefix, and is read again without it", generation.request_id)
        generation.num_cached_tokens = 0
        self._leave_row(generation, self._scheduler.preempt)
        return True

    def _leave_row(self, generation: Generation, leave: abc.Callable[[Sequence], abc.Sequence[RowMove]]) -> None:
        self._reuse.release(generation)
        row = self._scheduler.row_of(generation.sequence)
        moves = leave(generation.sequence)
        if row is not None:
            self._cache.release(row)
        for move in moves:
            self._cache.move(move)

    def _deliver(self, generation: Generation, output: RequestOutput) -> None:
        if output.finish_reason is not None:
            self._metrics.count_end(generation, output.finish_reason)
            self._mailbox.forget(generation.request_id)
        try:
            generation.on_output(output)
        except Exception:
            logger.exception("the receiver of request %s failed: aborting it", generation.request_id)
            self.abort(generation.request_id)

    def _end_all(self, reason: FinishReason, error: str | None = None) -> None:
        for generation in self._mailbox.drain():  # also those whose last output was not delivered because of a fault
            self._deliver(generation, generation.end(reason, error))
        for generation in self._generations.values():
            self._reuse.release(generation)
            self._adapters.forget(generation)
        self._generations.clear()
        self._grammars.close()


def _connect_stages(artifact: Artifact, settings: RuntimeSettings, startup: StartUp) -> Stages | None:
    if artifact.manifest.stage.is_whole and not settings.stages:
        return None

    from qwonnx.runtime.model.stages.joined import Stages

    with startup.phase("stages"):
        return Stages.connect(artifact, settings)


def _open_model(startup: StartUp, artifact: Artifact, settings: RuntimeSettings, max_model_len: int) -> OpenedModel:
    with startup.phase("session"):
        return open_model(artifact, settings, max_model_len)
