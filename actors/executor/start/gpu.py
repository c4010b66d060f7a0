"""Makes an executor's engine on a GPU: kernels, memory and graphs, in this order."""

from __future__ import annotations

from dataclasses import asdict

import torch

from ....protocol.errors import InvalidRequest
from ....runtime.process.child import StartContext
from ...options import ExecutorOptions, Measured
from ..devices.cuda import CudaDevice, CudaGraphs
from ..model.paged_model import PagedModel
from ..step.buckets import Buckets, buckets_of
from ..step.capturing import Capturing, agreed
from ..step.description import Step
from ..step.graphs import GraphRunner
from ..step.model_runner import ModelRunner
from ..step.warm_up import decode_step, largest_step, null_run, steps_of_all_kernels, warm_up
from ..triton_tools.compilation import compile_ahead, some_are_compiled
from .engine import Engine, facts_of, max_batched_tokens, runner_of
from .memory import Memory, bytes_of_graphs, check_states, count_blocks, step_too_large


def on_gpu(
    context: StartContext,
    options: ExecutorOptions,
    model: PagedModel,
    device: CudaDevice,
    graphs: CudaGraphs,
) -> Engine:
    """Everything that steps need is compiled and measured, the cache takes what is left, and graphs are captured.

    After a death streams wait, and nothing of that is done again: the same kernels lie compiled in Triton's cache,
    steps of the same sizes need the same memory, and take the same time. What the first steps need is loaded by them,
    the rest by the graphs that are captured between steps. But the recurrent kernels of other packages tune
    themselves when they first run, which must happen in steps without requests.
    """
    length, tokens = options.max_model_len, max_batched_tokens(options, "cuda")
    mode, reason = graph_mode(options.cuda_graphs, model.uncapturable)
    buckets = buckets_of(options.max_num_seqs, tokens, length)
    check_states(options, model, Memory(*device.memory()))
    runner = runner_of(options, model)
    graph_runner = None if mode == "off" else GraphRunner(runner, graphs.capture, length, buckets)

    reusable = context.restarted and options.measured is not None and runner.states is None
    measured = options.measured if agreed(model, reusable and some_are_compiled(model.device)) else None
    if measured is None:
        context.phase("compile kernels")
        step_bytes, all_steps_bytes = measure(options, runner, device, buckets)
    else:
        context.phase("take room")
        step_bytes, all_steps_bytes = measured.captured_step_bytes, measured.all_steps_bytes
        require_room(all_steps_bytes, options, device, buckets)
    layers = len(model.kv_layout.layers)
    reserved = (
        0 if graph_runner is None else bytes_of_graphs(len(graph_runner.forward_keys()), layers, step_bytes)
    )
    context.phase("allocate cache")
    blocks = count_blocks(options, model, Memory(*device.memory(), reserved))
    runner.allocate_cache(blocks)
    device.synchronize()  # it was made on the default stream

    facts = facts_of(options, model, blocks) | {"graphs": f"off: {reason}" if reason else mode}
    capturing = (
        None
        if graph_runner is None
        else Capturing(graph_runner, graphs, reserved, facts, lambda: device.has_room(step_bytes))
    )
    if capturing is not None and (measured is None or mode == "start"):
        context.phase("capture graphs")
        capture_at_start(capturing, everything=mode == "start")
    if measured is None:
        context.phase("warm up")
        run = runner.run if graph_runner is None else graph_runner.run
        with device.computing():
            steps = warm_up(runner, run, buckets, length, device.synchronize)
        measured = Measured(step_bytes, all_steps_bytes, tuple(steps))
    facts["settled"] = {"measured": asdict(measured)}
    engine = Engine(
        device=device, runner=runner, blocks=blocks, facts=facts, step_times=list(measured.step_times)
    )
    if graph_runner is not None and capturing is not None:
        engine.runner, engine.buckets, engine.background_work = graph_runner, buckets, capturing.capture_next
        engine.catching_up = capturing.announces = bool(graph_runner.queue.common)
        engine.missed_twice = lambda: graph_runner.queue.missed_twice
    return engine


def capture_at_start(capturing: Capturing, *, everything: bool) -> None:
    """Capture the largest graph, since the others fit into its memory, and with ``everything`` those too."""
    capturing.capture_next()
    while everything and capturing.capture_next() is not None:
        pass


def graph_mode(asked: str, uncapturable: str) -> tuple[str, str]:
    """When graphs are captured: ``start``, ``lazy`` or ``off``; and the reason if it is ``off`` by itself.

    Nobody waits for graphs by default, at the start of a service as little as after the death of an executor.
    InvalidRequest where graphs were asked for and cannot be: ``uncapturable`` as in `PagedModel`.
    """
    if asked == "auto":
        return ("off", uncapturable) if uncapturable else ("lazy", "")
    if asked != "off" and uncapturable:
        raise InvalidRequest(
            f"cuda_graphs={asked!r} is not possible: {uncapturable}; leave out --cuda-graphs"
        )
    return asked, ""


def require_room(size: int, options: ExecutorOptions, device: CudaDevice, buckets: Buckets) -> None:
    """Take the ``size`` bytes that steps needed when they were measured, or raise where they are not there any more."""
    torch.cuda.empty_cache()  # weights may have been loaded anew
    if not device.has_room(size):
        raise step_too_large(options, buckets.mixed[-1])


def measure(
    options: ExecutorOptions, runner: ModelRunner, device: CudaDevice, buckets: Buckets
) -> tuple[int, int]:
    """Run the largest steps, over a cache of one block: their kernels are compiled then, and have their memory.

    Returns the bytes of memory in which the largest step works that is captured as a graph, and those of the largest
    step of any kind.
    """
    torch.cuda.empty_cache()  # what loading took, on another stream, is of no use to steps
    runner.allocate_cache(1)
    device.synchronize()
    before, length = device.taken(), options.max_model_len

    def run_all_kernels() -> None:
        for step in steps_of_all_kernels(buckets, length):
            null_run(runner, runner.run, step, length)()

    def peak_memory(step: Step) -> int:
        with device.computing():  # the inputs too: on another stream they may be written after they are read
            run = null_run(runner, runner.run, step, length)
        return device.peak_memory(run)

    try:
        with device.computing():
            compile_ahead(runner.model.device, run_all_kernels)
        captured = peak_memory(largest_step(buckets, length, everything=False))
        peak_memory(largest_step(buckets, length, everything=True))
        if runner.states is not None:
            captured = peak_memory(decode_step(buckets, buckets.decode[-1], length))
    except torch.OutOfMemoryError as error:
        raise step_too_large(options, buckets.mixed[-1]) from error
    return captured, device.taken() - before
