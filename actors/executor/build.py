"""How an executor is put together: device, model, cache size, pipeline."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llguidance import LLExecutor

from ...protocol.errors import InvalidRequest, SlipstreamError
from ...protocol.messages import Capacity
from ..options import ExecutorOptions
from ..text.grammar import load_compiler
from .devices.kinds import kind_of
from .executor import Executor
from .patience import Patience
from .pipeline import Pipeline
from .sampling.masks import Masks
from .step.batch import RunningBatch
from .step.buckets import Buckets, buckets_of

if TYPE_CHECKING:
    from ...runtime.process.child import StartContext

CPU_CACHE_BYTES = 1 << 30
"""Memory for the cache on a CPU when none is stated."""

EMULATED_BLOCKS = 1 << 20
"""Most blocks on the emulated device, which stores nothing in them; the scheduler's ledger of them takes 80 MB."""


def build(context: StartContext) -> Executor:
    """The executor of a service, from its options."""
    options = context.options_as(ExecutorOptions)
    if options.device == "emulated":
        return build_emulated(context, options)
    return build_model(context, options)


def build_emulated(context: StartContext, options: ExecutorOptions) -> Executor:
    from .devices.emulated import EmulatedDevice, EmulatedProgram

    slots, length, size = options.max_num_seqs, options.max_model_len, options.block_size
    blocks = min(1 + slots * -(-length // size), EMULATED_BLOCKS)
    device = EmulatedDevice(options.emulated_step_ms)
    program = EmulatedProgram(slots, length, options.vocab_size, check_carry_over=options.check_carry_over)
    return assemble(
        context, options, device, program, blocks, {"device": "emulated", "step_ms": options.emulated_step_ms}
    )


def build_model(context: StartContext, options: ExecutorOptions) -> Executor:
    context.phase("import torch")
    import torch

    context.phase("import transformers")
    import transformers

    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()  # it would be garbage in a log
    from .step.program import ModelProgram

    where = torch.device(choose_device(options, torch))
    if where.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))  # one core is for the other actors
    model = load(context, options, where)
    slots, length, size = options.max_num_seqs, options.max_model_len, options.block_size
    if where.type == "cuda":
        torch.cuda.synchronize(where)  # the weights were made on the default stream
    device = make_device(where)
    program = ModelProgram(model, slots, length, size, check_carry_over=options.check_carry_over)
    graphs, graphed = None, None
    buckets = buckets_of(slots, max_batched_tokens(options, where.type), length)
    if where.type == "cuda":
        from .devices.cuda import CudaGraphs
        from .step.graphs import GraphedProgram

        graphs = CudaGraphs(device)
        graphed = GraphedProgram(program, graphs.capture, length, buckets)

    context.phase("allocate cache")  # all tables exist: it takes what is left
    blocks = count_blocks(options, model, where, torch)
    program.allocate_cache(blocks)
    facts = {
        "device": str(where),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": backend_of(options, where),
        "decoder": model.kept_because or "fused",
        "weight_bytes": model.weight_bytes,
        "kv_cache_bytes": blocks * model.layout.bytes_per_block(size, model.dtype),
    }
    if graphed is None or graphs is None:
        return assemble(context, options, device, program, blocks, facts)

    from .step.warm_up import warm_up

    torch.cuda.synchronize(where)  # so was the cache
    mode = options.cuda_graphs if model.capturable else "off"
    facts["graphs"] = mode
    if mode == "start":
        context.phase("capture graphs")
        graphed.capture_all()
        facts["graphs"] = f"{graphs.count} in {graphs.seconds:.1f} s, {graphs.bytes / 2**20:.0f} MiB"
    context.phase("warm up")
    run = program.run if mode == "off" else graphed.run
    with torch.cuda.stream(device.compute.stream), torch.inference_mode():
        steps = warm_up(program, run, buckets, length, torch.cuda.synchronize)
    if mode == "off":
        return assemble(context, options, device, program, blocks, facts, steps, buckets)
    return assemble(context, options, device, graphed, blocks, facts, steps, buckets, graphed.capture_next)


def load(context: StartContext, options: ExecutorOptions, where: Any) -> Any:
    """The model on its device."""
    from .model.load import load_model, make_model

    context.phase("load weights")
    model = (make_model if options.load_format == "dummy" else load_model)(
        options.model,
        device=where,
        dtype=options.dtype,
        attention_backend=backend_of(options, where),
    )
    if options.max_model_len > model.max_model_len:
        raise InvalidRequest(
            f"max_model_len={options.max_model_len} is over the {model.max_model_len} tokens that this model"
            " can be served with; lower --max-model-len"
        )
    return model


def backend_of(options: ExecutorOptions, where: Any) -> str:
    auto = options.attention_backend == "auto"
    return kind_of(where.type).attention if auto else options.attention_backend


def make_device(where: Any) -> Any:
    """The device of the pipeline for torch's ``where``."""
    if where.type == "cpu":
        from .devices.cpu import CpuDevice

        return CpuDevice()
    from .devices.cuda import CudaDevice

    return CudaDevice(where.index or 0)


def assemble(
    context: StartContext,
    options: ExecutorOptions,
    device: Any,
    program: Any,
    blocks: int,
    facts: dict[str, Any],
    steps: Sequence[tuple[int, int]] = (),
    buckets: Buckets | None = None,
    idle_work: Callable[[], bool] | None = None,
) -> Executor:
    """``steps`` as ``Capacity.steps``; ``buckets`` where steps are padded, ``idle_work`` where graphs are captured."""
    slots, size = options.max_num_seqs, options.block_size
    tokens = max_batched_tokens(options, facts["device"])
    max_blocks = -(-options.max_model_len // size)
    context.phase("load grammar vocabulary")
    compiler = load_compiler(Path(options.model), options.vocab_size, options.eos_token_ids)
    batch = RunningBatch(
        slots,
        tokens,
        max_blocks,
        buckets,
        mask_words=0 if isinstance(compiler, str) else compiler.words,
    )
    pipeline = Pipeline(
        device,
        program,
        options.pipeline_depth,
        batch.input_capacity,
        batch.output_capacity,
        batch.mask_capacity,
    )
    most_s = facts["hang_timeout_s"] = options.hang_timeout or kind_of(facts["device"]).step_hangs_s
    learns = facts["device"] == "cpu" and options.hang_timeout is None
    patience = Patience(tokens, most_s) if learns else None
    facts |= {"num_blocks": blocks, "block_size": size, "depth": options.pipeline_depth}
    masks = Masks(None, 0) if isinstance(compiler, str) else Masks(compiler, slots, LLExecutor())
    capacity = Capacity(blocks, size, context.crashed, list(steps), tokens)
    return Executor(pipeline, batch, capacity, facts, idle_work, masks, patience)


def max_batched_tokens(options: ExecutorOptions, device: str) -> int:
    """Most tokens of a step: what is stated, or the device's default and no less than one for each sequence."""
    return options.max_num_batched_tokens or max(kind_of(device).max_batched_tokens, options.max_num_seqs)


def choose_device(options: ExecutorOptions, torch: Any) -> str:
    """``cpu`` or ``cuda:N``; InvalidRequest where that is not there, or does nothing with an option that was given."""
    name, available = options.device, torch.cuda.is_available()
    if name.startswith("cuda"):
        if not available:
            raise InvalidRequest(
                f"device={name!r}: torch {torch.__version__} sees no CUDA device; use --device cpu"
            )
        index = int(name.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            raise InvalidRequest(
                f"device={name!r}: there are {torch.cuda.device_count()} CUDA devices, from cuda:0"
            )
        return f"cuda:{index}"
    if name == "auto" and available:
        return "cuda:0"
    if options.for_cuda_only:
        unused = options.for_cuda_only[0]
        raise InvalidRequest(
            f"{unused}={getattr(options, unused)} has no effect on the CPU,"
            f" and torch {torch.__version__} sees no CUDA device; leave out --{unused.replace('_', '-')}"
        )
    return "cpu"


def count_blocks(options: ExecutorOptions, model: Any, where: Any, torch: Any) -> int:
    """Blocks of the cache: what the memory holds, and no more than all sequences could fill."""
    size = options.block_size
    per_block = model.layout.bytes_per_block(size, model.dtype)
    most = 1 + options.max_num_seqs * -(-options.max_model_len // size)
    memory = options.kv_cache_memory or free_memory(where, options.gpu_memory_utilization, torch)
    blocks = min(most, memory // per_block)
    if blocks < 2:
        raise no_room(memory, per_block)
    return blocks


def free_memory(where: Any, utilization: float, torch: Any) -> int:
    """Bytes that the cache may take."""
    if where.type != "cuda":
        return CPU_CACHE_BYTES
    free, total = torch.cuda.mem_get_info(where)
    return max(0, int(free - (1.0 - utilization) * total))


def no_room(memory: int, per_block: int) -> SlipstreamError:
    error = SlipstreamError(
        f"the KV cache has {memory} bytes, and one block takes {per_block}; at least 2 blocks are needed"
    )
    error.hint = "raise --kv-cache-memory or --gpu-memory-utilization, or lower --max-model-len"  # type: ignore[attr-defined]
    return error
