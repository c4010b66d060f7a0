"""A service: which children its options ask for, and what each of them needs to know.

They are the five actors, the ranks of the executor, its spare and the keeper of its weights, and the OpenAI frontend.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .. import __version__, actors
from ..actors.checkpoint import open_checkpoint
from ..actors.executor.devices.kinds import uses_gpu
from ..actors.options import (
    DetokenizerOptions,
    ExecutorOptions,
    GatewayOptions,
    ModelOptions,
    SchedulerOptions,
    TokenizerOptions,
)
from ..options.adapters import adapters_of
from ..options.serve import ServeOptions
from ..protocol.endpoints import check_endpoint
from ..protocol.limits import Limits
from ..protocol.messages import Formats
from ..protocol.paths import absolute_path
from ..runtime.machine.memory import available
from ..runtime.supervision.children import ChildSpec
from .banner import announce_service
from .child_specs import chat_template_of, child, http_options
from .model_folder import describe, limits_for
from .running import specify_and_run

ACTOR_HANGS_S = 10.0
"""An actor with work and without progress for this long hangs, unless ``--hang-timeout`` says otherwise."""

EMULATED_STEP_MS = 5.0
"""Time of an emulated step without ``--emulated-step-ms``: about that of 8B on an H200."""

SPARE_BYTES = 2 << 30
"""Memory that has to be free for a spare executor on a CPU unless one is asked for: several times what it takes."""

BUNDLED_MODEL = Path(__file__).resolve().parents[1] / "model"


def serve(options: ServeOptions) -> int:
    """Run a service until SIGTERM, SIGINT or SIGHUP; returns the exit code."""
    return specify_and_run(options, lambda directory: service_specs(options, directory), announce_service)


def service_specs(options: ServeOptions, directory: Path) -> list[ChildSpec]:
    """The children in the order of their start, each with all that it needs to know."""
    checkpoint = open_checkpoint(options.model or str(BUNDLED_MODEL))
    needs_weights = options.device != "emulated" and options.load_format != "dummy"
    if needs_weights:
        checkpoint.check_weights()  # the executor would do it too, seconds later
    found = describe(options, checkpoint)
    limits = limits_for(options, checkpoint, found)
    endpoint = options.endpoint or f"ipc://{directory}/gateway"
    endpoint = check_endpoint(endpoint, insecure=options.insecure or options.curve_keys is not None)
    model = ModelOptions(
        model=str(checkpoint.folder),
        vocab_size=limits.vocab_size,
        max_model_len=limits.max_model_len,
        eos_token_ids=found.eos_token_ids,
    )
    gateway = gateway_options(options, endpoint, limits, found.formats)
    http = None
    if options.http is not None:
        http = http_options(options, options.http, model.model, options.served_names, limits)
        http = replace(http, server_dev_mode=options.server_dev_mode)
    if http is not None and http.curve is not None:
        gateway = replace(gateway, curve_also=(http.curve.public,))
    keepers = keepers_for(options, directory)
    ranks = executors(options, model, directory, keepers)
    children = [
        *keepers,
        *spares(options, ranks[0]),
        *ranks,
        child("scheduler", "scheduler.scheduler", scheduler_options(options, model)),
        child("detokenizer", "text.detokenizer", DetokenizerOptions(**vars(model), formats=found.formats)),
        child("tokenizer", "text.tokenizer", tokenizer_options(options, model, gateway)),
        child("gateway", "gateway.gateway", gateway, waits=True),
    ]
    if http is not None:
        children.append(child("http", "http.build", http, waits=True, frontend_of="gateway"))
    hang_timeout_s = ACTOR_HANGS_S if options.hang_timeout is None else options.hang_timeout
    return [replace(spec, hang_timeout_s=hang_timeout_s) for spec in children]


def executors(
    options: ServeOptions, model: ModelOptions, directory: Path, keepers: list[ChildSpec]
) -> list[ChildSpec]:
    """The executor, or its ranks: ``executor`` is the first of them."""
    size = options.tensor_parallel_size
    keeper = next((spec.keeps_at or "" for spec in keepers), "")
    ranks = [
        replace(
            executor_options(options, model, rank),
            adapters_file=str(directory / f"adapters.{rank}.json"),
            keeper=keeper,
        )
        for rank in range(size)
    ]
    group = "executor" if size > 1 else None
    return [
        replace(
            child(f"executor.{own.rank}" if own.rank else "executor", "executor.start.build", own),
            group=group,
        )
        for own in ranks
    ]


def keepers_for(options: ServeOptions, directory: Path) -> list[ChildSpec]:
    """The keeper of the weights, if there is one: on a CPU the spare has them already."""
    if options.weights_keeper == "on" or (options.weights_keeper == "auto" and uses_gpu(options.device)):
        return [ChildSpec("weights.keeper", "", {}, keeps_at=f"{directory}/keeper")]
    return []


def spares(options: ServeOptions, executor: ChildSpec) -> list[ChildSpec]:
    """The spare from which executors are forked, if there is one.

    On a CPU the first one is forked too, and shares its memory from the beginning. On a GPU it makes its context while
    it imports, which a spare cannot, and starts alone.
    """
    gpu = uses_gpu(options.device)
    wanted = options.spare_executor == "on" or (
        options.spare_executor == "auto"
        and options.device != "emulated"
        and (gpu or available() >= SPARE_BYTES)
    )
    if not wanted:
        return []
    prepare = f"{actors.__name__}.executor.start.prepare:prepare"
    return [replace(executor, name="executor.spare", group=None, prepare=prepare, from_the_first=not gpu)]


def gateway_options(options: ServeOptions, endpoint: str, limits: Limits, formats: Formats) -> GatewayOptions:
    return GatewayOptions(
        endpoint=endpoint,
        model_name=options.served_names[0],
        other_names=tuple(options.served_names[1:]),
        limits=limits,
        formats=formats,
        server=f"slipstream {__version__}",
        seed=options.seed,
        default_deadline=options.default_deadline,
        lora_updates=options.enable_lora_updates,
        curve_keys=None if options.curve_keys is None else absolute_path(options.curve_keys),
        curve_also=(),
        server_dev_mode=options.server_dev_mode,
        otlp_traces_endpoint=options.otlp_traces_endpoint,
    )


def tokenizer_options(
    options: ServeOptions, model: ModelOptions, gateway: GatewayOptions
) -> TokenizerOptions:
    return TokenizerOptions(
        **vars(model),
        formats=gateway.formats,
        max_prompt_bytes=gateway.limits.max_prompt_bytes,
        chat_template=chat_template_of(options),
        sanitize_control_tokens=options.sanitize_control_tokens,
    )


def scheduler_options(options: ServeOptions, model: ModelOptions) -> SchedulerOptions:
    return SchedulerOptions(
        **vars(model),
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        pipeline_depth=options.pipeline_depth,
        enable_prefix_caching=options.enable_prefix_caching,
    )


def executor_options(options: ServeOptions, model: ModelOptions, rank: int = 0) -> ExecutorOptions:
    step_ms = options.emulated_step_ms
    return ExecutorOptions(
        **vars(model),
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        pipeline_depth=options.pipeline_depth,
        block_size=options.block_size,
        device=options.device,
        for_cuda_only=tuple(options.without_effect("cpu")),
        dtype=options.dtype,
        quantization=options.quantization,
        adapters=tuple((name, absolute_path(path)) for name, path in adapters_of(options.lora)),
        max_loras=options.adapter_slots,
        max_lora_rank=options.max_lora_rank,
        attention_backend=options.attention_backend,
        batch_invariant=options.batch_invariant,
        load_format=options.load_format,
        cuda_graphs=options.cuda_graphs,
        kv_cache_dtype=options.kv_cache_dtype,
        kv_cache_memory=options.kv_cache_memory,
        gpu_memory_utilization=options.gpu_memory_utilization,
        check_carry_over=options.check_carry_over,
        emulated_step_ms=EMULATED_STEP_MS if step_ms is None else step_ms,
        hang_timeout=options.hang_timeout,
        tensor_parallel_size=options.tensor_parallel_size,
        rank=rank,
    )
