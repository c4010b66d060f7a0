"""CUDA graphs: every step replays one of its forward pass, and one of its sampling.

A graph of the forward pass is found by the sizes of a step, one of the sampling by its rows and kind. The two are
separate, so that there need not be a graph for each size with each kind. What precedes the forward pass (joins, blocks
and copies, of any number) and what is rare (masks, logprobs of prompts) is launched without a graph.

All graphs read one static copy of a step's packed inputs. Before a replay the inputs of the pipeline's slot are copied
into it. This copy, the replays and the copy of the tokens follow each other on the compute stream, so no replay ever
reads the inputs of another step. Numbers from the host are constants in a graph, so it is captured with upper bounds;
what a step really has is read from the inputs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ....protocol.limits import MAX_LOGPROBS, PROMPT_LOGPROBS_PER_STEP
from .buckets import Buckets
from .capture_queue import CaptureQueue
from .description import Step
from .graph_keys import ForwardKey, SamplingKey
from .layout import layout_of, result_layout
from .model_runner import ModelRunner, allowed_of
from .warm_up import decode_layout, mixed_layout, null_inputs

MAX_RARE_GRAPHS = 256
"""Most graphs of rare kinds of sampling. Thousands of kinds are possible, and each graph takes memory of the device.
The least recently used one makes room for the next."""


class Graph(Protocol):
    """Device work that was captured."""

    def replay(self) -> None:
        """Queue once more what was captured."""
        ...


class GraphRunner:
    """A `ModelRunner` that replays what has been captured of a step and runs the rest as it is.

    Graphs are captured at the start (``capture_all``) or one by one (``capture_next``), in the order of ``queue``.
    """

    def __init__(
        self,
        runner: ModelRunner,
        capture: Callable[[Callable[[], None] | None, Callable[[], None]], Graph],
        max_model_len: int,
        buckets: Buckets,
    ) -> None:
        """``capture`` runs both its arguments on the compute stream, and then captures the second; if the first is None
        it runs neither, since the second has run before. It waits until all work that is queued there is done. After a
        ``torch.OutOfMemoryError`` from it nothing more is captured.
        """
        self.runner = runner
        self.capture = capture
        self.max_model_len = max_model_len
        self.buckets = buckets
        model, slots = runner.model, buckets.seq_slots
        self.null_slot = slots
        largest = mixed_layout(buckets, buckets.mixed[-1], reports=True)
        self.inputs = torch.zeros(largest.graph_input_size, dtype=torch.int32, device=model.device)
        """The static copy of a step's inputs."""
        self.logits = torch.zeros(
            slots + PROMPT_LOGPROBS_PER_STEP, model.vocab_size, dtype=model.dtype, device=model.device
        )
        """The logits of the step under way."""
        self.outputs = torch.zeros(
            slots * (1 + 2 * (1 + MAX_LOGPROBS)), dtype=torch.int32, device=model.device
        )
        """The outputs that a graph of the sampling writes, before they are copied to the pipeline's slot."""
        self.forward_graphs: dict[ForwardKey, Graph] = {}
        self.sampling_graphs: dict[SamplingKey, Graph] = {}
        """The graphs of common kinds of sampling."""
        self.rare_sampling_graphs: OrderedDict[SamplingKey, Graph] = OrderedDict()
        """The graphs of rare kinds, the least recently used first."""
        self.queue = CaptureQueue(self.forward_keys(), buckets.decode, MAX_RARE_GRAPHS)
        """The graphs that are still to be captured."""

    def forward_keys(self) -> list[ForwardKey]:
        """The keys of the forward passes of all sizes, the largest first.

        A model that keeps states has graphs only of steps that decode, since each chunk of a prompt runs at its own
        length.
        """
        mixed = reversed(self.buckets.mixed) if self.runner.states is None else ()
        layouts = [mixed_layout(self.buckets, tokens) for tokens in mixed]
        layouts += [decode_layout(self.buckets, rows) for rows in reversed(self.buckets.decode)]
        return [layout.forward_key for layout in layouts]

    def sampling_graph(self, key: SamplingKey) -> Graph | None:
        """The graph of ``key``, which becomes the most recently used one; None if there is none."""
        graph = self.sampling_graphs.get(key)
        if graph is not None:
            return graph
        graph = self.rare_sampling_graphs.get(key)
        if graph is not None:
            self.rare_sampling_graphs.move_to_end(key)
        return graph

    @property
    def num_graphs(self) -> int:
        """The number of graphs that have been captured."""
        return len(self.forward_graphs) + len(self.sampling_graphs) + len(self.rare_sampling_graphs)

    # --- the step -----------------------------------------------------------------------------------

    def run(self, inputs: Tensor, outputs: Tensor, step: Step) -> None:
        """As `ModelRunner.run`."""
        self.begin(inputs, step)
        self.finish(inputs, None, outputs, step)

    def begin(self, inputs: Tensor, step: Step) -> None:
        """As `ModelRunner.begin`."""
        runner, layout = self.runner, step.layout
        runner.apply(inputs, step)
        self.inputs[: layout.graph_input_size].copy_(inputs[: layout.graph_input_size])
        graph = self.forward_graphs.get(layout.forward_key)
        if graph is not None:
            graph.replay()
        else:
            if not step.row_tokens:
                self.queue.want(layout.forward_key)
            # With the bounds of a graph, so that it needs no kernel that was not compiled for one.
            logits = runner.forward(self.inputs, layout, self.max_model_len, step.row_tokens)
            self.logits[: layout.logits].copy_(logits)
        runner.count(inputs, step)

    def finish(self, inputs: Tensor, masks: Tensor | None, outputs: Tensor, step: Step) -> None:
        """As `ModelRunner.finish`."""
        runner, layout, kind = self.runner, step.layout, step.kind
        if layout.samples:
            key = SamplingKey(layout.samples, kind)
            graph = self.sampling_graph(key) if masks is None else None
            if graph is not None:
                graph.replay()
                size = result_layout(layout.samples, kind.logprobs, 0, 0).size
                outputs[:size].copy_(self.outputs[:size])
            else:
                if masks is None:
                    self.queue.want(key)
                slots = self.inputs[: layout.samples]
                allowed = allowed_of(inputs, masks, step)
                runner.sample(self.logits, slots, allowed, outputs, kind, step.results)
        if layout.prompt_logprobs:
            runner.report_prompts(self.logits, inputs, outputs, step)

    # --- capture ------------------------------------------------------------------------------------

    def capture_all(self) -> None:
        """Capture all graphs that are missing."""
        while self.capture_next():
            pass

    def capture_next(self) -> bool:
        """Capture the next missing graph; False if none is missing, or there is no memory for it."""
        taken = self.queue.take()
        if taken is None:
            return False
        key, has_run = taken
        try:
            self.capture_one(key, has_run=has_run)
        except torch.OutOfMemoryError:
            self.queue.close()
            return False
        return True

    def capture_one(self, key: ForwardKey | SamplingKey, *, has_run: bool) -> None:
        """Capture the graph of ``key``, and keep it where steps look for it. ``has_run``: a step has run this work, so
        its kernels are compiled."""
        if isinstance(key, ForwardKey):
            self.forward_graphs[key] = self.capture_forward(key, has_run=has_run)
            return
        graph = self.capture_sampling(key, has_run=has_run)
        if not key.rare:
            self.sampling_graphs[key] = graph
            return
        if len(self.rare_sampling_graphs) == MAX_RARE_GRAPHS:
            self.rare_sampling_graphs.popitem(
                last=False
            )  # its replays are over, as the capture has waited for them
        self.rare_sampling_graphs[key] = graph

    def capture_forward(self, key: ForwardKey, *, has_run: bool) -> Graph:
        """Capture a forward pass from the static inputs to the static logits; ``has_run`` as in ``capture_one``."""
        runner, seq_slots = self.runner, self.buckets.seq_slots
        layout = layout_of(
            seq_slots=seq_slots,
            decode_only=key.decode_only,
            rows=key.rows,
            tokens=key.tokens,
            logits=key.logits,
            samples=0,
        )
        logits = self.logits[: layout.logits]

        def prepare() -> None:
            null_inputs(self.inputs, layout, self.null_slot, self.max_model_len)

        def work() -> None:
            logits.copy_(runner.forward(self.inputs, layout, self.max_model_len))

        return self.capture(None if has_run else prepare, work)

    def capture_sampling(self, key: SamplingKey, *, has_run: bool) -> Graph:
        """Capture the sampling from the static logits to the static outputs; ``has_run`` as in ``capture_one``."""
        runner, slots = self.runner, self.inputs[: key.samples]
        results = result_layout(key.samples, key.kind.logprobs, 0, 0)

        def prepare() -> None:
            slots.fill_(self.null_slot)

        def work() -> None:
            runner.sample(self.logits, slots, None, self.outputs, key.kind, results)

        return self.capture(None if has_run else prepare, work)
