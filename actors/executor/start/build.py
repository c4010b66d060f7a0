"""Builds an executor: device, model, cache, pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llguidance import LLExecutor

from ....protocol.internal import Capacity
from ...options import ExecutorOptions
from ..devices.kinds import kind_name, kind_of
from ..executor import Executor
from ..model.adapters.loaded import LoadedAdapters
from ..pipeline import Pipeline
from ..ranks.follower import Follower
from ..ranks.leader import Leader, name_of
from ..sampling.masks import Masks
from ..step.batch import RunningBatch
from ..step_limit import StepLimit
from .engine import Engine, facts_of, max_batched_tokens, runner_of
from .imports import import_libraries
from .load_folder import load, load_adapters, load_grammars
from .memory import check_states, count_blocks
from .prepare import Prepared
from .read_ahead import reading_ahead

if TYPE_CHECKING:
    from ....runtime.process.child import StartContext
    from ..model.paged_model import PagedModel

EMULATED_BLOCKS = 1 << 20
"""Most blocks on the emulated device, which stores nothing in them; the scheduler's ledger of them takes 80 MB."""


def build(context: StartContext) -> Executor | Follower:
    """The executor of a service, from its options."""
    options = context.options_as(ExecutorOptions)
    if options.device == "emulated":
        return build_emulated(context, options)
    return build_model(context, options)


def build_emulated(context: StartContext, options: ExecutorOptions) -> Executor | Follower:
    from ..devices.emulated import EmulatedDevice
    from ..step.emulated_runner import EmulatedRunner

    slots, length, size = options.max_num_seqs, options.max_model_len, options.block_size
    engine = Engine(
        device=EmulatedDevice(options.emulated_step_ms),
        runner=EmulatedRunner(slots, length, options.vocab_size, check_carry_over=options.check_carry_over),
        blocks=min(1 + slots * -(-length // size), EMULATED_BLOCKS),
        facts={"device": "emulated", "step_ms": options.emulated_step_ms},
    )
    return assemble(context, options, engine)


def build_model(context: StartContext, options: ExecutorOptions) -> Executor | Follower:
    """The executor of a model of transformers, on a CPU or a GPU."""
    prepared: Prepared | None = context.prepared
    model = None if prepared is None else prepared.model
    if model is None:
        with reading_ahead(options):
            where = import_libraries(context, options)
            model = load(context, options, where, None if prepared is None else prepared.skeleton)
    else:
        where = import_libraries(context, options)
    adapters = load_adapters(context, options, model)
    if where.type == "cpu":
        return assemble(context, options, on_cpu(context, options, model), adapters)
    from ..devices.cuda import CudaDevice, CudaGraphs
    from .gpu import on_gpu

    device = CudaDevice(where.index or 0)
    device.synchronize()  # the weights were made on the default stream
    return assemble(context, options, on_gpu(context, options, model, device, CudaGraphs(device)), adapters)


def on_cpu(context: StartContext, options: ExecutorOptions, model: PagedModel) -> Engine:
    """Steps run as large as they are, and nothing is compiled."""
    from ..devices.cpu import CpuDevice

    check_states(options, model, None)
    runner = runner_of(options, model)
    context.phase("allocate cache")
    blocks = count_blocks(options, model, None)
    runner.allocate_cache(blocks)
    return Engine(device=CpuDevice(), runner=runner, blocks=blocks, facts=facts_of(options, model, blocks))


def assemble(
    context: StartContext, options: ExecutorOptions, engine: Engine, adapters: LoadedAdapters | None = None
) -> Executor | Follower:
    """The executor around an engine."""
    slots, facts = options.max_num_seqs, engine.facts
    tokens = max_batched_tokens(options, facts["device"])
    prepared: Prepared | None = context.prepared
    compiler = load_grammars(context, options) if prepared is None else prepared.compiler
    stateful = bool(facts.get("states"))
    batch = RunningBatch(
        slots,
        tokens,
        -(-options.max_model_len // options.block_size),
        engine.buckets,
        mask_words=0 if isinstance(compiler, str) else compiler.words,
        stateful=stateful,
    )
    pipeline = Pipeline(
        engine.device,
        engine.runner,
        options.pipeline_depth,
        batch.input_capacity,
        batch.output_capacity,
        batch.mask_capacity,
    )
    most_s = facts["hang_timeout_s"] = options.hang_timeout or kind_of(facts["device"]).step_hangs_s
    learns = facts["device"] == "cpu" and options.hang_timeout is None
    step_limit = StepLimit(tokens, most_s) if learns else None
    if options.device == "auto":  # a GPU that is lost is no reason to take the CPU
        facts.setdefault("settled", {})["device"] = kind_name(facts["device"])
    facts |= {
        "num_blocks": engine.blocks,
        "block_size": options.block_size,
        "depth": options.pipeline_depth,
    }
    masks = Masks(None, 0) if isinstance(compiler, str) else Masks(compiler, slots, LLExecutor())
    if options.rank:
        name = name_of(options.rank)
        return Follower(name, options.rank, pipeline, batch, facts, engine.background_work, step_limit)
    capacity = Capacity(
        engine.blocks,
        options.block_size,
        context.crashed,
        engine.step_times,
        tokens,
        prefix_caching=not stateful,
        step_sizes=[] if engine.buckets is None else list(engine.buckets.mixed),
    )
    given = (pipeline, batch, capacity, facts, engine.background_work, masks, step_limit)
    named: dict[str, Any] = dict(
        catching_up=engine.catching_up, missed_twice=engine.missed_twice, adapters=adapters
    )
    if options.tensor_parallel_size > 1:
        followers = tuple(map(name_of, range(1, options.tensor_parallel_size)))
        return Leader(*given, **named, followers=followers)
    return Executor(*given, **named)
