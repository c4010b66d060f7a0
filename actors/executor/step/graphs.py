"""CUDA graphs: a step that only decodes is captured once per padded batch size, and replayed.

The whole step is inside: the block table's update, carry-over, forward pass, sampling and the stop
test; or, of another graph, all that comes before the sampling, for steps that ask of it what is not
captured or cannot be, as masks. A graph reads one static copy of a step's packed inputs, which the
inputs of the pipeline's slot are copied into before the replay; the copy, the replay and the copy of
the tokens follow each other on the compute stream, so no replay ever sees inputs that are not its
own. All graphs share one pool of memory, captured largest first so that the smaller ones fit into
what the largest took.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..devices.cuda import CudaStream
from .batch import StepShape
from .program import ModelProgram
from .warm_up import null_step


def graph_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """Padded batch sizes: 1, 2, 4, then multiples of 8, of 16 from 256 on, up to ``max_num_seqs``."""
    sizes = [1, 2, 4, *range(8, 257, 8), *range(272, max_num_seqs + 1, 16)]
    return (*(size for size in sizes if size < max_num_seqs), max_num_seqs)


@dataclass(slots=True)
class Captured:
    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    outputs: Tensor


MOST_GRAPHS = 1024
"""Of shapes beyond so many the forward pass alone is replayed: logprobs, penalties and truncation make many kinds of
each size."""


class GraphedProgram:
    """Replays what has been captured of a step, all of it or its forward pass, and runs the rest as it is.

    Shapes are captured at the start (``capture_all``) or one by one while there is nothing to run
    (``capture_next``); a shape that is met and has no graph is the next of those.
    """

    def __init__(
        self, program: ModelProgram, stream: CudaStream, max_model_len: int, sizes: tuple[int, ...]
    ) -> None:
        """``sizes``, rising: the batch sizes that are captured in any case, greedy, plainly sampled, and the forward
        pass alone, which serves whatever else is asked of the sampling."""
        self.program = program
        self.stream = stream
        self.max_model_len = max_model_len
        self.captured: dict[StepShape, Captured] = {}
        self.missing: list[StepShape] = []
        """Shapes to capture, the first first."""
        for size in reversed(sizes):
            greedy = self.plain_shape(size, True)
            self.missing += [greedy, self.plain_shape(size, False), forward_of(greedy)]
        self.logits: Tensor | None = None
        """float32 [rows, vocab] of a forward pass alone, one for all graphs: its sampling comes before the next."""
        self.bytes = 0
        """Device memory that the graphs take."""
        self.pool = torch.cuda.graph_pool_handle()

    def plain_shape(self, size: int, greedy: bool) -> StepShape:
        return StepShape(
            decodes=size,
            chunks=(),
            samples=size,
            padding=0,
            joins=0,
            blocks=size,
            max_decode_kv_len=self.max_model_len,
            greedy=greedy,
            truncated=False,
            min_tokens=False,
        )

    def run(self, inputs: Tensor, outputs: Tensor, shape: StepShape) -> None:
        captured = self.find(shape)
        if captured is not None:
            captured.inputs.copy_(inputs[: shape.size])
            captured.graph.replay()
            outputs[: shape.output_size].copy_(captured.outputs)
            return
        logits = self.replay_forward(inputs, shape)
        if logits is None:
            self.program.run(inputs, outputs, shape)
        else:
            self.program.choose(logits, inputs, None, outputs, shape)

    def forward(self, inputs: Tensor, shape: StepShape) -> None:
        logits = self.replay_forward(inputs, shape)
        if logits is None:
            self.program.forward(inputs, shape)
        else:
            self.program.logits = logits

    def replay_forward(self, inputs: Tensor, shape: StepShape) -> Tensor | None:
        """The logits of the step's forward pass by its graph; None where there is none."""
        captured = self.find(forward_of(shape))
        if captured is None:
            return None
        captured.inputs.copy_(inputs[: len(captured.inputs)])
        captured.graph.replay()
        return captured.outputs

    def sample(self, inputs: Tensor, masks: Tensor, outputs: Tensor, shape: StepShape) -> None:
        """Never a graph: which rows have a mask changes from step to step."""
        self.program.sample(inputs, masks, outputs, shape)

    def find(self, shape: StepShape) -> Captured | None:
        """The graph to replay; None: there is none, and it is wanted."""
        if shape.chunks or shape.joins or not shape.decodes:
            return None
        # The real length is read from the device; the graph's is the bound for all of its replays.
        key = replace(shape, padding=0, max_decode_kv_len=self.max_model_len)
        captured = self.captured.get(key)
        if captured is None:
            self.want(key)
        return captured

    def want(self, shape: StepShape) -> None:
        """The shape is met without a graph: it comes first of those that are captured in idle time."""
        if shape in self.missing:
            self.missing.remove(shape)
        elif len(self.captured) + len(self.missing) >= MOST_GRAPHS:
            return
        self.missing.insert(0, shape)

    def capture_all(self) -> None:
        while self.capture_next():
            pass

    def capture_next(self) -> bool:
        """Capture one missing shape; False if none was missing."""
        if not self.missing:
            return False
        shape = self.missing.pop(0)
        torch.cuda.empty_cache()  # as capturing does first: what it frees is not the graph's
        before = torch.cuda.memory_reserved()
        with torch.cuda.stream(self.stream.stream), torch.inference_mode():
            self.captured[shape] = self.capture(shape)
        self.bytes += torch.cuda.memory_reserved() - before
        return True

    def capture(self, shape: StepShape) -> Captured:
        """Capture the step of ``shape``. It first runs once on null rows, which compiles what needs it."""
        device = self.program.model.device
        inputs = torch.zeros(shape.size, dtype=torch.int32, device=device)
        null_step(inputs, shape, self.program.state.finished.shape[0] - 1)
        if shape.forward_only:
            outputs = self.logits_of(shape.samples)
        else:
            outputs = torch.zeros(shape.output_size, dtype=torch.int32, device=device)

        def work() -> None:
            if shape.forward_only:
                outputs.copy_(self.program.compute(inputs, shape))
            else:
                self.program.run(inputs, outputs, shape)

        work()
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that waits for completions may go on waiting meanwhile
        with torch.cuda.graph(
            graph, pool=self.pool, stream=self.stream.stream, capture_error_mode="thread_local"
        ):
            work()
        return Captured(graph, inputs, outputs)

    def logits_of(self, rows: int) -> Tensor:
        if self.logits is None:
            model, slots = self.program.model, self.program.state.finished.shape[0] - 1
            self.logits = torch.zeros(slots, model.vocab_size, device=model.device)
        return self.logits[:rows]


def forward_of(shape: StepShape) -> StepShape:
    """The forward pass alone: the same whatever is asked of the sampling."""
    return replace(
        shape,
        greedy=True,
        truncated=False,
        min_tokens=False,
        candidates=0,
        nucleus=False,
        penalties=False,
        biased=False,
        logprobs=0,
        masked=(),
        mask_words=0,
        forward_only=True,
    )
