"""One service: the five actors, and the OpenAI frontend if asked for, under a supervisor, from start to stop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from . import __version__
from .actors.checkpoint import Checkpoint, chat_template_sources, open_checkpoint
from .actors.executor.devices.kinds import uses_gpu
from .actors.options import (
    DetokenizerOptions,
    ExecutorOptions,
    GatewayOptions,
    HttpOptions,
    ModelOptions,
    SchedulerOptions,
    TokenizerOptions,
)
from .options import ServeOptions, adapters_of
from .protocol.client_key import ClientKey
from .protocol.endpoints import check_endpoint
from .protocol.errors import BY_CODE, InvalidRequest, ModelNotSupported, SlipstreamError
from .protocol.formats.formats import HELD_BY_GRAMMAR, formats_of
from .protocol.limits import MAX_FRAME_BYTES, MAX_STOP_TOKEN_IDS, PROTOCOL, Limits
from .protocol.messages import Formats
from .route_options import RouteOptions
from .runtime.file_limit import check_file_limit
from .runtime.keys import KeyFolder, new_pair
from .runtime.log import configure, log_failure, logger, wants_json
from .runtime.memory import available
from .runtime.run_directory import run_directory
from .runtime.socket_file import remove_left
from .runtime.supervision.children import Child, ChildFailed, ChildSpec
from .runtime.supervision.control import IDLE_SIGNALS
from .runtime.supervision.notify import Notify
from .runtime.supervision.supervisor import Supervisor

DRAINED, COULD_NOT_START, FAILED = 0, 3, 4
"""Exit codes; a usage error is 2."""

KINDS = {kind.__name__: kind for kind in BY_CODE.values()}
"""The errors that are the user's to mend, by name."""

ACTOR_HANGS_S = 10.0
"""An actor with work and without progress for this long hangs, unless ``--hang-timeout`` says otherwise."""

EMULATED_STEP_MS = 5.0
"""How long an emulated step takes without ``--emulated-step-ms``."""

BUNDLED_MODEL = Path(__file__).resolve().parent / "model"


def serve(options: ServeOptions) -> int:
    """Run a service until SIGTERM, SIGINT or SIGHUP; returns the exit code."""
    return plan_and_run(options, lambda directory: plan_service(options, directory), announce_service)


def plan_and_run(
    options: ServeOptions | RouteOptions, plan: Callable[[Path], list[ChildSpec]], announce: Announce
) -> int:
    """Run the children that ``plan`` makes for a run directory; returns the exit code."""
    configure(as_json=wants_json(options.log_format))
    parent = os.getppid()
    with run_directory() as directory:
        try:
            check_file_limit()
            specs = plan(directory)
        except SlipstreamError as error:
            log_failure("slipstream could not start", f"  cause   {type(error).__name__}: {error}")
            report_failed(options.ready_fd, error.code, str(error))
            return COULD_NOT_START
        try:
            return run(specs, options, directory, parent, announce)
        finally:
            remove_left(options.endpoint or "")


Announce = Callable[[Supervisor, float], dict[str, Any]]
"""Writes the banner, given what the start took in seconds; returns the ready line."""


def run(
    specs: list[ChildSpec],
    options: ServeOptions | RouteOptions,
    directory: Path,
    parent: int,
    announce: Announce,
) -> int:
    """Run these children until told to stop; returns the exit code."""
    notify = Notify(os.environ)
    supervisor = Supervisor(specs, directory, notify, collect_output=wants_json(options.log_format))
    hang_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)  # as nohup asks
    supervisor.handle(signal.SIGTERM, signal.SIGINT, *hang_up, signal.SIGCHLD, *IDLE_SIGNALS)
    if options.exit_with_parent:
        supervisor.end_with(parent)
    begun = time.monotonic()
    try:
        if not supervisor.start():
            supervisor.stop()
            return DRAINED
        ready = announce(supervisor, time.monotonic() - begun)
        if options.ready_fd is not None:
            report_ready(options.ready_fd, ready)
        notify.send("READY=1", f"STATUS=serving {ready['model']} at {ready['endpoint']}")
    except (SlipstreamError, OSError) as error:
        block = str(error) if isinstance(error, ChildFailed) else f"  cause   {error}"
        log_failure("slipstream could not start", block)
        trace(error)
        supervisor.stop()
        kind = KINDS.get(getattr(error, "kind", ""), SlipstreamError)
        report_failed(options.ready_fd, kind.code, block)
        return COULD_NOT_START
    last_words = "the service has stopped"
    try:
        supervisor.run()
        with contextlib.suppress(SlipstreamError):  # a drain goes on even if nobody can be notified
            notify.send("STOPPING=1")
        if not supervisor.parent_gone:
            logger.info(
                f"stopping; waiting up to {options.shutdown_timeout:g} s for what is under way (again: at once)"
            )
            frontends = [name for name in ("http", "gateway", "router") if name in supervisor.children]
            if not supervisor.drain(frontends, options.shutdown_timeout):
                last_words = "the service was stopped before this request was finished"
                log_failure(
                    "slipstream stopped before everything was finished",
                    f"  cause   {'told twice to stop' if len(supervisor.signals) > 1 else 'the drain took too long'}"
                    "; what was left is answered with an error",
                )
                return FAILED
        return DRAINED
    except SlipstreamError as error:
        last_words = f"the service failed: {getattr(error, 'cause', error)}"
        log_failure("slipstream failed", str(error))
        trace(error)
        return FAILED
    finally:
        supervisor.stop(last_words)


def trace(error: Exception) -> None:
    """The child's stack, for an error that is ours: not the user's, and not the machine's."""
    failure = getattr(error, "failure", None)
    if failure is not None and failure.kind not in KINDS and not failure.for_good:
        logger.error("%s", failure.trace)


def announce_service(supervisor: Supervisor, seconds: float) -> dict[str, Any]:
    """The banner; returns the ready line."""
    executor = supervisor.children["executor"]
    gateway = supervisor.children["gateway"]
    facts = executor.facts
    served = msgspec.convert(gateway.spec.options, GatewayOptions)
    length = served.limits.max_model_len
    tokens = (facts["num_blocks"] - 1) * facts["block_size"]
    spare = supervisor.children.get("executor.spare")
    spent = Counter(spare.phases if spare is not None and executor.forked else {}) + Counter(executor.phases)
    phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in spent.items() if seconds >= 0.05)
    logger.info(f"slipstream {__version__} serves {served.model_name}")
    ranks = sum(child.spec.group == "executor" for child in supervisor.children.values())
    device = facts["device"] + (f" for the first of {ranks} ranks" if ranks else "")
    logger.info(
        f"  device {device}, dtype {facts.get('dtype', '-')}, attention {facts.get('attention', '-')},"
        f" pipeline depth {facts['depth']}, CUDA graphs {facts.get('graphs', '-')}"
    )
    if facts.get("decoder", "fused") != "fused":
        logger.info(f"  decoder as transformers has it, of several times as many kernels: {facts['decoder']}")
    if facts.get("batch_invariant"):
        logger.info(
            "  batch-invariant: a token's logits have the same bits whatever else is computed with it"
        )
    if facts.get("weights"):
        logger.info(f"  {facts['weights']}")
    logger.info(
        f"  KV cache {facts['num_blocks']} blocks of {facts['block_size']} = {tokens} tokens,"
        f" {tokens / length:.1f} requests of {length} tokens"
        + (", a byte a number (FP8)" if facts.get("kv_cache_dtype") == "fp8" else "")
    )
    if spare is not None and spare.state == "ready":
        logger.info(f"  spare executor (pid {spare.process.pid}): {spare.memory()}")
    keeper = supervisor.children.get("weights.keeper")
    if keeper is not None and keeper.state == "ready":
        logger.info(f"  keeper of the weights (pid {keeper.process.pid}): {keeper.memory()}")
    if facts.get("adapters"):
        logger.info(f"  {facts['adapters']}")
    for line in facts.get("states", ()):
        logger.info(f"  {line}")
    ready = announce_addresses(supervisor, gateway, served.model_name)
    logger.info(f"ready in {seconds:.1f} s ({phases})")
    return ready


def announce_addresses(supervisor: Supervisor, front: Child, model: str) -> dict[str, Any]:
    """The lines of the banner that say where clients connect; returns the ready line. ``front``: whom they speak to."""
    logger.info(f"  endpoint {front.facts['endpoint']}")
    http = supervisor.children["http"].facts["url"] if "http" in supervisor.children else None
    if http is not None:
        logger.info(f"  http {http}")
    return {
        "endpoint": front.facts["endpoint"],
        "http": http,
        "pid": os.getpid(),
        "protocol": list(PROTOCOL),
        "model": model,
        "control": supervisor.status.endpoint,
    }


def report_failed(fd: int | None, code: str, message: str) -> None:
    """Report on the descriptor of the ready line that it will not come, and why."""
    if fd is not None:
        with contextlib.suppress(OSError):  # nobody reads it any more
            os.write(fd, json.dumps({"error": code, "message": message}).encode() + b"\n")


def report_ready(fd: int, ready: dict[str, Any]) -> None:
    try:
        os.write(fd, json.dumps(ready).encode() + b"\n")
    except OSError as error:
        raise SlipstreamError(f"--ready-fd {fd} cannot be written: {error.strerror}") from None
    os.close(fd)


BYTES_PER_TOKEN = 16
"""Most bytes that a prompt may have for each token of the longest context. Prose and code have two to six a token in
any vocabulary, tables and deep indentation up to ten; only long runs of one character have more."""


# --- from options to children -------------------------------------------------------------------------


def plan_service(options: ServeOptions, directory: Path) -> list[ChildSpec]:
    """The children in the order of their start, each with all that it needs to know."""
    checkpoint = open_checkpoint(options.model or str(BUNDLED_MODEL))
    needs_weights = options.device != "emulated" and options.load_format != "dummy"
    if needs_weights:
        checkpoint.check_weights()  # the executor would do it too, seconds later
    limit = checkpoint.max_model_len
    if limit is None and options.max_model_len is None:
        raise InvalidRequest("the model's config.json states no length; give --max-model-len")
    length = options.max_model_len or limit or 0
    if limit is not None and length > limit:
        raise InvalidRequest(f"max_model_len={length} is over the model's own limit of {limit} tokens")
    endpoint = options.endpoint or f"ipc://{directory}/gateway"
    check_endpoint(endpoint, insecure=options.insecure or options.curve_keys is not None)
    limits = Limits(
        max_model_len=length,
        vocab_size=checkpoint.vocab_size,
        max_prompt_bytes=min(MAX_FRAME_BYTES // 2, max(65_536, BYTES_PER_TOKEN * length)),
        max_stop_token_ids=MAX_STOP_TOKEN_IDS - len(checkpoint.eos_token_ids()),
        max_queued_requests=options.max_queued_requests,
    )
    model = ModelOptions(
        model=str(checkpoint.folder),
        vocab_size=limits.vocab_size,
        max_model_len=length,
        eos_token_ids=tuple(checkpoint.eos_token_ids()),
    )
    formats = formats_for(options, checkpoint)
    gateway = GatewayOptions(
        endpoint=endpoint,
        model_name=served_names(options)[0],
        limits=limits,
        formats=formats,
        server=f"slipstream {__version__}",
        seed=options.seed,
        default_deadline=options.default_deadline,
        lora_updates=options.enable_lora_updates,
        curve_keys=None if options.curve_keys is None else os.path.abspath(options.curve_keys),
        curve_also=(),
        server_dev_mode=options.server_dev_mode,
        otlp_traces_endpoint=options.otlp_traces_endpoint,
    )
    http = None
    if options.http is not None:
        http = http_options(options, options.http, model.model, served_names(options), limits)
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
        child("detokenizer", "text.detokenizer", DetokenizerOptions(**vars(model), formats=formats)),
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
    paths = {
        "adapters_file": str(directory / "adapters.json"),
        "keeper": next((spec.keeps_at or "" for spec in keepers), ""),
    }
    ranks = [replace(executor_options(options, model, rank), **paths) for rank in range(size)]
    group = "executor" if size > 1 else None
    return [
        replace(child(f"executor.{own.rank}" if own.rank else "executor", "executor.build", own), group=group)
        for own in ranks
    ]


def keepers_for(options: ServeOptions, directory: Path) -> list[ChildSpec]:
    """The keeper of the weights, if there is one: on a CPU the spare has them already."""
    alone = options.tensor_parallel_size == 1
    if options.weights_keeper == "on" or (
        options.weights_keeper == "auto" and alone and uses_gpu(options.device)
    ):
        return [ChildSpec("weights.keeper", "", {}, keeps_at=f"{directory}/keeper")]
    return []


SPARE_BYTES = 2 << 30
"""Memory that has to be free for a spare executor on a CPU unless one is asked for: several times what it takes."""


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
    prepare = f"{__package__}.actors.executor.prepare:prepare"
    return [replace(executor, name="executor.spare", group=None, prepare=prepare, from_the_first=not gpu)]


def child(
    name: str, module: str, options: Any, *, waits: bool = False, frontend_of: str | None = None
) -> ChildSpec:
    """An actor that ``build`` of a module makes, with its options."""
    factory = f"{__package__}.actors.{module}:build"
    return ChildSpec(name, factory, msgspec.to_builtins(options), waits=waits, frontend_of=frontend_of)


def formats_for(options: ServeOptions, checkpoint: Checkpoint) -> Formats:
    """How the model writes thoughts and calls: as it is told, or as its chat template has it."""
    file = chat_template_of(options)
    if file is None:
        template = "\n".join(chat_template_sources(checkpoint.folder).values())
    else:
        try:
            template = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelNotSupported(f"the chat template {file} cannot be read: {error}") from None
    found = formats_of(template, str(checkpoint.config.get("model_type", "")))
    tool_calls = options.tool_call_parser or found.tool_calls
    return Formats(
        reasoning=options.reasoning_parser or found.reasoning,
        tool_calls=tool_calls,
        strict=tool_calls in HELD_BY_GRAMMAR,
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


def chat_template_of(options: ServeOptions | RouteOptions) -> str | None:
    return None if options.chat_template is None else os.path.abspath(options.chat_template)


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
        adapters=tuple((name, os.path.abspath(path)) for name, path in adapters_of(options.lora)),
        max_loras=options.adapter_places,
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


def served_names(options: ServeOptions) -> list[str]:
    """What the model is called towards clients; answers have the first."""
    given = (options.served_model_name or "").split(",")
    names = list(dict.fromkeys(name.strip() for name in given if name.strip()))
    return names or [options.model or "slipstream-bundled"]


def model_defaults(file: str | None) -> dict[str, dict[str, Any]]:
    """What ``--model-defaults`` says; whether the fields are good, the frontend sees."""
    if file is None:
        return {}
    try:
        return msgspec.json.decode(Path(file).read_bytes(), type=dict[str, dict[str, Any]])
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidRequest(
            f'{file} cannot be read: {error}; it is a JSON file such as {{"NAME": {{"temperature": 0.6}}}}'
        ) from None


def http_options(
    options: ServeOptions | RouteOptions, address: str, folder: str, names: Sequence[str], limits: Limits
) -> HttpOptions:
    """The frontend is a client too: where clients need a key, it has one that is made for this start."""
    key = None
    if options.curve_keys is not None:
        public, secret = new_pair()
        server, _ = KeyFolder(Path(options.curve_keys)).server()
        key = ClientKey(server=server, public=public, secret=secret)
    origins = [origin.strip() for origin in (options.allowed_origins or "").split(",")]
    return HttpOptions(
        endpoint=address,
        curve=key,
        model=folder,
        model_name=names[0],
        other_names=tuple(names[1:]),
        adapters=isinstance(options, RouteOptions) or options.adapter_places > 0,
        limits=limits,
        chat_template=chat_template_of(options),
        sanitize_control_tokens=options.sanitize_control_tokens,
        version=__version__,
        api_key=options.api_key,
        metrics_prefix=options.metrics_prefix,
        defaults=model_defaults(options.model_defaults),
        allowed_origins=tuple(origin for origin in origins if origin),
    )
