"""Scheduler and executor around one device, where torch computes: what tests of whole schedules share."""

from __future__ import annotations

import functools
import os
import queue
import select
from collections.abc import Callable

import numpy as np
import torch
from llguidance import LLExecutor
from replay import CountedGraphs, Replays, SpoilingRunner
from slipstream.actors.executor.devices.cuda import CudaDevice
from slipstream.actors.executor.devices.device import Device
from slipstream.actors.executor.executor import Executor
from slipstream.actors.executor.model.adapters.loaded import LoadedAdapters
from slipstream.actors.executor.model.paged_model import PagedModel
from slipstream.actors.executor.pipeline import Pipeline
from slipstream.actors.executor.sampling.masks import Masks
from slipstream.actors.executor.step.batch import RunningBatch
from slipstream.actors.executor.step.buckets import buckets_of
from slipstream.actors.executor.step.graphs import GraphRunner
from slipstream.actors.executor.step.model_runner import ModelRunner
from slipstream.actors.scheduler.config import SchedulerConfig
from slipstream.actors.scheduler.scheduler import Scheduler
from slipstream.actors.text.grammars.grammar import GrammarCompiler
from slipstream.protocol.events import Completed, PeerUp
from slipstream.protocol.internal import AdapterAnswer, AddAdapter, Capacity, Enqueue, RemoveAdapter, Tokens
from slipstream.protocol.sampling import SamplingParams
from slipstream.runtime.actor import Send
from tokenizers import Tokenizer, decoders, models
from workers import ThreeWorkers

VOCAB, LENGTH, SLOTS, BLOCK, BUDGET = 23, 64, 5, 4, 12
EOS = 21


@functools.cache
def compiler() -> GrammarCompiler:
    """Of a vocabulary of single letters."""
    letters = {letter: token for token, letter in enumerate("abcdefghijklmnopqrstuvw")}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.decoder = decoders.ByteLevel()
    return GrammarCompiler(tokenizer, VOCAB, [EOS])


class Rig:
    """Scheduler and executor around the device of a model: a GPU, or a CPU whose threads, one for each stream, give the
    timing."""

    def __init__(
        self,
        model: PagedModel,
        depth: int,
        blocks: int,
        *,
        graphs: str = "off",
        adapters: LoadedAdapters | None = None,
    ) -> None:
        """``graphs``: ``off``, ``all`` captured, ``none`` though steps are padded for them, or ``meanwhile``."""
        self.adapters = adapters
        self.changed: list[AdapterAnswer] = []
        self.scheduler = Scheduler(SchedulerConfig(SLOTS, BUDGET, LENGTH, depth, (EOS,)))
        self.tokens: dict[int, list[int]] = {}
        self.ends: dict[int, str] = {}
        self.start = functools.partial(self.start_executor, model, depth, blocks, graphs)
        self.start()

    def start_executor(self, model: PagedModel, depth: int, blocks: int, graphs: str) -> None:
        on_gpu = model.device.type == "cuda"
        device = CudaDevice(model.device.index or 0) if on_gpu else ThreeWorkers()
        self.device: Device = device
        self.graphs = CountedGraphs(device) if isinstance(device, CudaDevice) else Replays()
        buckets = buckets_of(SLOTS, BUDGET, LENGTH) if graphs != "off" else None
        stateful = model.stateful is not None
        batch = RunningBatch(SLOTS, BUDGET, LENGTH // BLOCK, buckets, compiler().words, stateful=stateful)
        background_work = None
        with torch.inference_mode():
            runner = ModelRunner(model, SLOTS, LENGTH, BLOCK, blocks, check_carry_over=True)
            if on_gpu:
                torch.cuda.synchronize(model.device)  # it was made on the default stream
            if buckets:
                # What graphs of a GPU leave is written over by the next: they share their memory.
                graphed = GraphRunner if on_gpu else SpoilingRunner
                runner = graphed(runner, self.graphs.capture, LENGTH, buckets)
                if on_gpu:
                    torch.cuda.synchronize(model.device)
                if graphs == "all":
                    runner.capture_all()
                if graphs == "meanwhile":
                    background_work = self.capturing(runner)
        pipeline = Pipeline(
            self.device, runner, depth, batch.input_capacity, batch.output_capacity, batch.mask_capacity
        )
        masks = Masks(compiler(), SLOTS, LLExecutor())
        capacity = Capacity(blocks, BLOCK, prefix_caching=not stateful)
        given = (pipeline, batch, capacity, {}, background_work, masks)
        self.executor = Executor(*given, catching_up=background_work is not None, adapters=self.adapters)
        self.carry(self.scheduler.receive("executor", capacity, 0.0))

    def kill(self) -> None:
        """The executor dies with all that it holds and has under way, and another takes its place."""
        over = self.device.event()
        self.device.compute.record(over)
        over.wait()  # a process takes its threads with it: the next computes with the same model
        self.device.close()
        self.carry(self.scheduler.receive("supervisor", PeerUp("executor", 2), 0.0))
        if self.adapters is not None:
            self.adapters = LoadedAdapters(self.adapters.weights, self.adapters.file)
            self.adapters.start([])
        self.start()

    def capturing(self, runner: GraphRunner) -> Callable[[], float | None]:
        """Captures a graph on the compute stream, behind what is queued there, as on a GPU."""

        def capture_next() -> float | None:
            done: queue.SimpleQueue[bool] = queue.SimpleQueue()
            self.device.compute.launch(lambda: done.put(runner.capture_next()), (), ())
            return 0.0 if done.get(timeout=30.0) else None

        return capture_next

    def carry(self, sends: list[Send]) -> None:
        for to, message in sends:
            if to == "executor":
                self.carry(self.executor.receive("scheduler", message, 0.0))
            elif to == "scheduler":
                self.carry(self.scheduler.receive("executor", message, 0.0))
            elif isinstance(message, AdapterAnswer):
                self.changed.append(message)
            elif isinstance(message, Tokens):
                requests = np.frombuffer(message.requests, np.int64).tolist()
                for request, token in zip(
                    requests, np.frombuffer(message.tokens, np.int32).tolist(), strict=True
                ):
                    self.tokens.setdefault(request, []).append(token)
                self.ends |= {end.request: end.reason for end in message.finished}

    def ask(self, request: int, prompt: list[int], params: SamplingParams) -> None:
        self.tokens.setdefault(request, [])
        ids = np.array(prompt, np.int32).tobytes()
        self.carry(self.scheduler.receive("tokenizer", Enqueue(request, ids, params, b""), 0.0))

    def change(self, number: int, name: str, path: str = "") -> None:
        """Load an adapter, or without a path unload it."""
        message = AddAdapter(number, name, path) if path else RemoveAdapter(number, name)
        self.carry(self.scheduler.receive("gateway", message, 0.0))

    def wait(self) -> None:
        """Until the device has finished a step."""
        fd = self.device.completions_fd
        assert fd is not None
        assert select.select([fd], [], [], 30.0)[0], "the device is silent"
        os.eventfd_read(fd)
        self.carry(self.executor.receive("device", Completed(), 0.0))
        if self.executor.wake_at is not None:
            self.carry(self.executor.wake(0.0))

    def turn(self) -> None:
        """A turn of the executor that it wants by itself, or the end of a step."""
        if self.executor.wake_at is not None:
            self.carry(self.executor.wake(0.0))
        else:
            self.wait()

    def finish(self) -> None:
        while self.scheduler.sequences or not self.executor.pipeline.idle:
            self.wait()
        self.device.close()
