"""How an executor is put together: device, model, cache size, pipeline."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llguidance import LLExecutor

from ...protocol.errors import InvalidRequest, SlipstreamError
from ...protocol.internal import Adapter, Capacity
from ...runtime.log import logger
from ..options import ExecutorOptions
from .ahead import wake
from .devices.kinds import kind_name, kind_of
from .engine import Engine, facts_of, max_batched_tokens, program_of
from .executor import Executor
from .kept_adapters import KeptAdapters
from .memory import check_states, count_blocks
from .patience import Patience
from .pipeline import Pipeline
from .prepare import (
    Prepared,
    backend_of,
    check_length,
    import_transformers,
    load_grammars,
    load_whole,
    reading_ahead,
    room_of,
    skeleton_in,
    uncollected,
)
from .ranks.follower import Follower
from .ranks.leader import Leader, name_of
from .sampling.masks import Masks
from .step.batch import RunningBatch

if TYPE_CHECKING:
    import torch

    from ...runtime.process.child import StartContext
    from .model.paged_model import PagedModel
    from .ranks.group import RankGroup

EMULATED_BLOCKS = 1 << 20
"""Most blocks on the emulated device, which stores nothing in them; the scheduler's ledger of them takes 80 MB."""


def build(context: StartContext) -> Executor | Follower:
    """The executor of a service, from its options."""
    options = context.options_as(ExecutorOptions)
    if options.device == "emulated":
        return build_emulated(context, options)
    return build_model(context, options)


def build_emulated(context: StartContext, options: ExecutorOptions) -> Executor | Follower:
    from .devices.emulated import EmulatedDevice, EmulatedProgram

    slots, length, size = options.max_num_seqs, options.max_model_len, options.block_size
    engine = Engine(
        device=EmulatedDevice(options.emulated_step_ms),
        program=EmulatedProgram(slots, length, options.vocab_size, check_carry_over=options.check_carry_over),
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
            model = load(context, options, where)
    else:
        where = import_libraries(context, options)
    adapters = load_adapters(context, options, model)
    if where.type == "cpu":
        return assemble(context, options, on_cpu(context, options, model), adapters)
    from .devices.cuda import CudaDevice, CudaGraphs
    from .gpu import on_gpu

    device = CudaDevice(where.index or 0)
    device.synchronize()  # the weights were made on the default stream
    return assemble(context, options, on_gpu(context, options, model, device, CudaGraphs(device)), adapters)


@uncollected()
def import_libraries(context: StartContext, options: ExecutorOptions) -> torch.device:
    """Import what is slow, set it up, and say where the model runs."""
    context.phase("import torch")
    stated = stated_index(options)
    waking = None if stated is None else wake(stated)
    import torch

    with found_again(options, torch) if context.restarted else nullcontext():
        where = torch.device(choose_device(options, torch))
    if where.type == "cpu":
        cores = (os.cpu_count() or 2) - 1  # one core is for the other actors
        torch.set_num_threads(max(1, cores // options.tensor_parallel_size))
    elif waking is None:
        waking = wake(where.index or 0)
    import_transformers(context)
    if where.type == "cuda":
        if context.restarted and waking is not None:
            context.phase("make context")
            waking.join()
            with found_again(options, torch):
                torch.empty(1, device=where)
                torch.cuda.synchronize(where)
        torch.cuda.set_device(where)  # Triton launches where the current device is
    return where


def stated_index(options: ExecutorOptions) -> int | None:
    """Of the GPU that this rank is to have; None if that is not known before somebody looks for one."""
    name, _, index = options.device.partition(":")
    return int(index or 0) + options.rank if name == "cuda" else None


def load_adapters(context: StartContext, options: ExecutorOptions, model: PagedModel) -> KeptAdapters | None:
    """Those that are there from the start, into places of this incarnation's own; None: there is room for none."""
    if not options.max_loras:
        return None
    context.phase("load adapters")
    places = model.take_adapters(options.max_loras, options.max_lora_rank)
    kept = KeptAdapters(places, Path(options.adapters_file))
    kept.start([Adapter(id, name, path) for id, (name, path) in enumerate(options.adapters, 1)])
    if model.group is not None:
        leave_out_what_others_lack(kept, model.group, model.device)
    return kept


def leave_out_what_others_lack(kept: KeptAdapters, group: RankGroup, device: torch.device) -> None:
    """An adapter that was there before may be gone for one rank, and not yet for another: they compute together."""
    for id in range(1, kept.places.count + 1):
        everywhere = group.least(int(id in kept.loaded), device)
        if not everywhere and id in kept.loaded:
            logger.warning(
                "the adapter %r is not loaded on another rank: it is left out", kept.loaded[id].name
            )
            kept.unload(id)


def on_cpu(context: StartContext, options: ExecutorOptions, model: PagedModel) -> Engine:
    """Steps run as large as they are, and nothing is compiled."""
    from .devices.cpu import CpuDevice

    check_states(options, model, None)
    program = program_of(options, model)
    context.phase("allocate cache")
    blocks = count_blocks(options, model, None)
    program.allocate_cache(blocks)
    return Engine(device=CpuDevice(), program=program, blocks=blocks, facts=facts_of(options, model, blocks))


def load(context: StartContext, options: ExecutorOptions, where: torch.device) -> PagedModel:
    """The model on its device, or of several ranks the part of this one."""
    if options.tensor_parallel_size == 1:
        return load_whole(context, options, where)
    from .keeping.weights import KeptWeights
    from .model.loading.load import nothing_around
    from .ranks.load import load_part, make_part
    from .ranks.meeting import meet

    context.phase("meet the other ranks")
    group = meet(options.rank, options.tensor_parallel_size, options.rendezvous, where)
    kept = KeptWeights(options.keeper, options.rank) if options.keeper else None
    backend, room, model = backend_of(options, where), room_of(options, where), None
    if kept is not None and context.restarted:
        context.phase("take weights over")
        model = kept.taken_over(
            options.model, where, backend, group=group, room=room, skeleton=skeleton_in(context)
        )
    if model is None:
        context.phase("load weights")
        model = (make_part if options.load_format == "dummy" else load_part)(
            options.model,
            group,
            device=where,
            dtype=options.dtype,
            attention_backend=backend,
            quantization=options.quantization,
            room=room,
            around=nothing_around if kept is None else kept.keeping,
        )
    return check_length(options, model)


def assemble(
    context: StartContext, options: ExecutorOptions, engine: Engine, adapters: KeptAdapters | None = None
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
        engine.program,
        options.pipeline_depth,
        batch.input_capacity,
        batch.output_capacity,
        batch.mask_capacity,
    )
    most_s = facts["hang_timeout_s"] = options.hang_timeout or kind_of(facts["device"]).step_hangs_s
    learns = facts["device"] == "cpu" and options.hang_timeout is None
    patience = Patience(tokens, most_s) if learns else None
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
        return Follower(name, options.rank, pipeline, batch, facts, engine.spare_work, patience)
    capacity = Capacity(
        engine.blocks,
        options.block_size,
        context.crashed,
        engine.steps,
        tokens,
        prefix_caching=not stateful,
        sizes=[] if engine.buckets is None else list(engine.buckets.mixed),
    )
    given = (pipeline, batch, capacity, facts, engine.spare_work, masks, patience)
    named: dict[str, Any] = dict(catching_up=engine.catching_up, repeats=engine.repeats, adapters=adapters)
    if options.tensor_parallel_size > 1:
        followers = tuple(map(name_of, range(1, options.tensor_parallel_size)))
        return Leader(*given, **named, followers=followers)
    return Executor(*given, **named)


class DeviceLost(SlipstreamError):
    """The device on which the service has run cannot be used any more."""

    for_good = True
    hint = "look at the device (nvidia-smi, dmesg), then start the service again"


@contextmanager
def found_again(options: ExecutorOptions, torch: Any) -> Iterator[None]:
    """``DeviceLost`` where the device of the incarnation before is not there, or lets nobody use it."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # it is there, and full
    except (InvalidRequest, RuntimeError, AssertionError) as error:
        first = str(error).strip().splitlines()[0]
        raise DeviceLost(
            f"device {options.device!r} served until now and cannot be used any more: {first}"
        ) from error


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
        return check_fp8(options, device_of_rank(options, index, torch), torch)
    if name == "auto" and available:
        return check_fp8(options, device_of_rank(options, 0, torch), torch)
    if options.for_cuda_only:
        unused = options.for_cuda_only[0]
        raise InvalidRequest(
            f"{unused}={getattr(options, unused)} has no effect on the CPU,"
            f" and torch {torch.__version__} sees no CUDA device; leave out --{unused.replace('_', '-')}"
        )
    return "cpu"


FP8_CACHE = (8, 9)
"""The least compute capability of a GPU for which Triton compiles what reads and writes a cache in FP8."""


def check_fp8(options: ExecutorOptions, device: str, torch: Any) -> str:
    """The device; InvalidRequest if the cache is to be in FP8 and the GPU knows none."""
    if options.kv_cache_dtype == "fp8" and options.attention_backend != "torch":
        found = torch.cuda.get_device_capability(device)
        if found < FP8_CACHE:
            raise InvalidRequest(
                f"kv_cache_dtype='fp8': {device} has compute capability {found[0]}.{found[1]}, and FP8 needs"
                f" {FP8_CACHE[0]}.{FP8_CACHE[1]} (Ada, Hopper) or higher; leave out --kv-cache-dtype"
            )
    return device


def device_of_rank(options: ExecutorOptions, first: int, torch: Any) -> str:
    """Each rank has the next device, from ``first`` on."""
    ranks, devices = options.tensor_parallel_size, torch.cuda.device_count()
    if first + ranks > devices:
        from_there = f", {devices - first} of them from cuda:{first} on" if first else ""
        raise InvalidRequest(
            f"tensor_parallel_size={ranks}: each rank needs a device of its own, and torch sees {devices} CUDA"
            f" device{'s' if devices > 1 else ''}{from_there}"
        )
    return f"cuda:{first + options.rank}"
