"""The real `GraphRunner` around the emulated runner, and all that it does noted in a recording.

Graphs are closures (``replay.py``). What torch does to a buffer is seen where torch dispatches it; what the emulated
runner does, which is numpy's, is said by its parts.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from recording import RecordedBatch, RecordedRunner, Recording, RecordingDevice
from slipstream.actors.executor.devices.device import Buffer
from slipstream.actors.executor.devices.emulated import EmulatedDevice
from slipstream.actors.executor.step.description import Step
from slipstream.actors.executor.step.emulated_runner import EmulatedRunner
from slipstream.actors.executor.step.graphs import GraphRunner
from slipstream.actors.executor.step.layout import ResultLayout, StepLayout
from slipstream.actors.executor.step.sampling_kind import SamplingKind
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class TensorDevice(EmulatedDevice):
    """The emulated device, whose buffers are tensors."""

    def staging(self, count: int) -> Any:
        return torch.zeros(count, dtype=torch.int32)

    def buffer(self, count: int) -> Any:
        return torch.zeros(count, dtype=torch.int32)

    def array(self, staging: Buffer) -> np.ndarray:
        return staging.numpy()


class TensorRunner:
    """The emulated runner in the parts, and of the tensors, that `GraphRunner` wants."""

    def __init__(self, runner: EmulatedRunner, recording: Recording, *, stateful: bool = False) -> None:
        self.runner = runner
        self.recording = recording
        self.states = SimpleNamespace() if stateful else None
        self.model = SimpleNamespace(
            device=torch.device("cpu"), vocab_size=runner.vocab_size, dtype=torch.float32
        )

    def apply(self, inputs: Tensor, step: Step) -> None:
        self.recording.use([inputs], [])
        self.runner.apply(inputs.numpy(), step)

    def forward(
        self, inputs: Tensor, layout: StepLayout, max_kv_len: int, row_tokens: tuple[int, ...] = ()
    ) -> Tensor:
        self.recording.use([inputs], [])
        self.runner.forward(inputs.numpy(), layout)
        return torch.zeros(layout.logits, self.runner.vocab_size)

    def count(self, inputs: Tensor, step: Step) -> None:
        """Penalties change no token of the emulated runner."""

    def sample(
        self,
        logits: Tensor,
        sample_slots: Tensor,
        allowed: tuple[Tensor, Tensor] | None,
        outputs: Tensor,
        kind: SamplingKind,
        results: ResultLayout,
    ) -> None:
        self.recording.use([logits, sample_slots, *(allowed or ())], [outputs])
        masks = None if allowed is None else (allowed[0].numpy(), allowed[1].numpy())
        self.runner.sample(sample_slots.numpy(), masks, outputs.numpy(), kind, results)

    def report_prompts(self, logits: Tensor, inputs: Tensor, outputs: Tensor, step: Step) -> None:
        self.recording.use([logits, inputs], [outputs])
        self.runner.report_prompts(inputs.numpy(), outputs.numpy(), step)


class Uses(TorchDispatchMode):
    """Notes what torch reads and writes."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads: list[Tensor] = []
        writes: list[Tensor] = []
        for declared, given in zip(func._schema.arguments, args, strict=False):
            if isinstance(given, Tensor):
                alias = declared.alias_info
                if alias is None:
                    reads.append(given)
                elif alias.is_write:  # otherwise a view of it is made, and nothing read
                    writes.append(given)
        self.recording.use(reads, writes)
        return func(*args, **(kwargs or {}))


class RecordedGraphs(RecordedRunner):
    """A `GraphRunner` whose every access is noted."""

    def __init__(self, graphed: GraphRunner, recording: Recording, batch: RecordedBatch) -> None:
        super().__init__(graphed, recording, batch)
        self.graphed = graphed
        for name, buffer in (
            ("graph inputs", graphed.inputs),
            ("graph logits", graphed.logits),
            ("graph outputs", graphed.outputs),
        ):
            recording.names[recording.location(recording.allocate("buffer", buffer)).place] = name

    def capturing(self, device: RecordingDevice) -> Callable[[], float | None]:
        """Captures a graph on the compute stream, as on a GPU: background work of an executor."""

        def capture_next() -> float | None:
            done: list[bool] = []

            def capture() -> None:
                with Uses(self.recording):
                    done.append(self.graphed.capture_next())

            device.compute.launch(capture, (), ())
            return 0.001 if done[0] else None

        return capture_next

    @property
    def inputs(self) -> Tensor:
        """The static copy that graphs read."""
        return self.graphed.inputs

    @property
    def outputs(self) -> Tensor:
        """What graphs write."""
        return self.graphed.outputs

    def run(self, inputs: Buffer, outputs: Buffer, step: Step) -> None:
        with Uses(self.recording):
            super().run(inputs, outputs, step)

    def begin(self, inputs: Buffer, step: Step) -> None:
        with Uses(self.recording):
            super().begin(inputs, step)

    def finish(self, inputs: Buffer, masks: Buffer, outputs: Buffer, step: Step) -> None:
        with Uses(self.recording):
            super().finish(inputs, masks, outputs, step)
