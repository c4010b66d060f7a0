"""A scheduler in front of an executor of one or more ranks, on CPU devices in one process.

Rank 0 runs in the thread of the test and each other rank in one of its own; what they do together is done by gloo.
"""

from __future__ import annotations

import functools
import os
import queue
import select
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llguidance import LLExecutor
from rank_threads import at_once
from replay import Replays, SpoilingRunner
from slipstream.actors.executor.background_work import FIRST_TOKENS_S
from slipstream.actors.executor.devices.cpu import CpuDevice
from slipstream.actors.executor.executor import Executor
from slipstream.actors.executor.model.paged_model import PagedModel
from slipstream.actors.executor.pipeline import Pipeline
from slipstream.actors.executor.ranks.follower import Follower
from slipstream.actors.executor.ranks.leader import Leader, name_of
from slipstream.actors.executor.sampling.masks import Masks
from slipstream.actors.executor.step.batch import RunningBatch
from slipstream.actors.executor.step.buckets import buckets_of
from slipstream.actors.executor.step.model_runner import ModelRunner
from slipstream.actors.scheduler.config import SchedulerConfig
from slipstream.actors.scheduler.scheduler import Scheduler
from slipstream.actors.text.grammars.grammar import GrammarCompiler
from slipstream.protocol.events import Completed, PeerUp
from slipstream.protocol.internal import Capacity, Enqueue, Tokens
from slipstream.protocol.sampling import SamplingParams
from slipstream.runtime.actor import Send
from tiny_models import EOS_TOKEN_ID, VOCAB_SIZE, make_tokenizer
from tokenizers import Tokenizer

LENGTH, SLOTS, BLOCK, BUDGET = 96, 5, 4, 12
TIMEOUT_S = 30.0


@functools.cache
def compiler() -> GrammarCompiler:
    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer(Path(folder))
        return GrammarCompiler(Tokenizer.from_file(f"{folder}/tokenizer.json"), VOCAB_SIZE, [EOS_TOKEN_ID])


class Rank:
    """What one rank has."""

    def __init__(self, model: PagedModel, depth: int, blocks: int, captured: bool) -> None:
        self.device = CpuDevice()
        buckets = buckets_of(SLOTS, BUDGET, LENGTH) if captured else None
        self.batch = RunningBatch(
            SLOTS, BUDGET, LENGTH // BLOCK, buckets, compiler().words, stateful=model.stateful is not None
        )
        runner = ModelRunner(model, SLOTS, LENGTH, BLOCK, blocks, check_carry_over=True)
        self.replays = Replays()
        self.graphed = None
        if buckets is not None:
            self.graphed = SpoilingRunner(runner, self.replays.capture, LENGTH, buckets)
        self.runner = runner
        batch = self.batch
        self.pipeline = Pipeline(
            self.device,
            self.graphed or runner,
            depth,
            batch.input_capacity,
            batch.output_capacity,
            batch.mask_capacity,
        )


class FollowerThread:
    """Runs a follower: what it is sent, and what its device completes."""

    def __init__(self, rank: Rank, number: int, lazy: bool) -> None:
        capture_next = rank.graphed.capture_next if lazy and rank.graphed else None
        self.actor = Follower(name_of(number), number, rank.pipeline, rank.batch, {}, capture_next)
        self.device = rank.device
        self.inbox: deque[Any] = deque()
        self.bell = os.eventfd(0, os.EFD_NONBLOCK)
        self.ended = False
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def post(self, message: Any) -> None:
        self.inbox.append(message)
        os.eventfd_write(self.bell, 1)

    def run(self) -> None:
        torch.set_num_threads(1)
        completions = self.device.completions_fd
        assert completions is not None
        try:
            while not (self.ended and self.actor.idle):
                ready, _, _ = select.select([self.bell, completions], [], [])
                if completions in ready:
                    os.eventfd_read(completions)
                    assert self.actor.receive("device", Completed(), 0.0) == []
                if self.bell in ready:
                    os.eventfd_read(self.bell)
                    while self.inbox:
                        assert self.actor.receive("executor", self.inbox.popleft(), 0.0) == []
        except BaseException as error:
            self.failure = error

    def end(self) -> None:
        self.ended = True
        os.eventfd_write(self.bell, 1)
        self.thread.join(TIMEOUT_S)
        assert not self.thread.is_alive()
        if self.failure is not None:
            raise self.failure


def background_work_of(rank: Rank) -> Callable[[], float | None]:
    """As of `Executor`: a capture, behind what is queued on the compute stream."""

    def capture_next() -> float | None:
        graphed, done = rank.graphed, queue.SimpleQueue[bool]()
        assert graphed is not None
        rank.device.compute.launch(lambda: done.put(graphed.capture_next()), (), ())
        return 0.0 if done.get(timeout=TIMEOUT_S) else None

    return capture_next


class Service:
    """Scheduler and executor, with a rank for each model.

    ``graphs`` are none, captured at the start, or one by one when idle (lazy), and meanwhile between steps.
    """

    def __init__(
        self,
        models: list[PagedModel],
        *,
        depth: int = 2,
        blocks: int = 60,
        graphs: str = "none",
    ) -> None:
        captured, lazy = graphs != "none", graphs in ("lazy", "meanwhile")
        with torch.inference_mode():
            self.ranks = [Rank(model, depth, blocks, captured) for model in models]
        if graphs == "start":
            at_once(lambda rank: rank.graphed.capture_all(), self.ranks)
        first = self.ranks[0]
        background_work = background_work_of(first) if lazy else None
        capacity = Capacity(blocks, BLOCK, prefix_caching=models[0].stateful is None)
        given = (first.pipeline, first.batch, capacity, {}, background_work)
        masks = Masks(compiler(), SLOTS, LLExecutor())
        self.scheduler = Scheduler(SchedulerConfig(SLOTS, BUDGET, LENGTH, depth, (EOS_TOKEN_ID,)))
        self.followers: dict[str, FollowerThread] = {}
        if len(models) == 1:
            self.executor = Executor(*given, masks)
        else:
            names = tuple(name_of(rank) for rank in range(1, len(models)))
            self.executor = Leader(*given, masks, catching_up=graphs == "meanwhile", followers=names)
            for number, name in enumerate(names, 1):
                self.followers[name] = FollowerThread(self.ranks[number], number, lazy)
        self.now = 0.0
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, int] = {}
        """How many of the columns of logprobs that a step brought are each request's."""
        self.carry(self.executor.receive("scheduler", PeerUp("scheduler", 1), 0.0))
        for name in self.followers:
            self.carry(self.executor.receive(name, PeerUp(name, 1), 0.0))

    def carry(self, sends: list[Send]) -> None:
        for to, message in sends:
            if to == "executor":
                self.carry(self.executor.receive("scheduler", message, self.now))
            elif to == "scheduler":
                self.carry(self.scheduler.receive("executor", message, self.now))
            elif to in self.followers:
                self.followers[str(to)].post(message)
            elif isinstance(message, Tokens):
                requests = np.frombuffer(message.requests, np.int64).tolist()
                tokens = np.frombuffer(message.tokens, np.int32).tolist()
                for request, token in zip(requests, tokens, strict=True):
                    self.tokens.setdefault(request, []).append(token)

    def ask(self, request: int, prompt: list[int], params: SamplingParams) -> None:
        self.tokens.setdefault(request, [])
        ids = np.array(prompt, np.int32).tobytes()
        self.carry(self.scheduler.receive("tokenizer", Enqueue(request, ids, params, b""), 0.0))

    def wait(self) -> None:
        """Until the first rank's device has finished a step."""
        fd = self.ranks[0].device.completions_fd
        assert fd is not None
        assert select.select([fd], [], [], TIMEOUT_S)[0], "the device is silent"
        os.eventfd_read(fd)
        self.now = max(self.now, FIRST_TOKENS_S)  # from now on there may be captures between steps
        self.carry(self.executor.receive("device", Completed(), self.now))
        self.wake()

    def wake(self) -> None:
        """As a host does, when it is time."""
        if self.executor.wake_at is not None:
            self.now = max(self.now, self.executor.wake_at)
            self.carry(self.executor.wake(self.now))

    def finish(self) -> None:
        """Until all that was asked is answered; then the ranks must know the same."""
        while self.scheduler.sequences or not self.executor.pipeline.idle:
            self.wait()
        while self.executor.wake_at is not None:
            self.wake()
        for follower in self.followers.values():
            follower.end()
        for rank in self.ranks:
            rank.device.close()
        tables = [rank.runner.table for rank in self.ranks]
        for table in tables[1:]:
            for name in ("tokens", "position", "finished", "block_table"):
                assert torch.equal(getattr(table, name), getattr(tables[0], name)), name
