"""One service: the five actors, and the OpenAI face if asked for, under a supervisor, from start to stop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from . import __version__
from .actors.checkpoint import open_checkpoint
from .options import ServeOptions
from .protocol.curve import KeyFolder, new_pair
from .protocol.endpoints import check_endpoint
from .protocol.errors import BY_CODE, InvalidRequest, SlipstreamError
from .protocol.limits import MAX_FRAME_BYTES, PROTOCOL
from .runtime.log import Log
from .runtime.run_directory import run_directory
from .runtime.supervision.children import ChildFailed, ChildSpec
from .runtime.supervision.notify import Notify
from .runtime.supervision.supervisor import Supervisor

DRAINED, COULD_NOT_START, FAILED = 0, 3, 4
"""Exit codes; a usage error is 2."""

KINDS = {kind.__name__: kind for kind in BY_CODE.values()}
"""The errors that are the user's to mend, by name."""

ACTOR_HANGS_S = 10.0
"""Without progress for so long an actor hangs, where nothing is said."""

EMULATED_STEP_MS = 5.0
"""How long an emulated step takes where nothing is said."""

BUNDLED_MODEL = Path(__file__).resolve().parent / "model"


def serve(options: ServeOptions) -> int:
    """Run a service until SIGTERM or SIGINT; returns the exit code."""
    log = Log(options.log_format)
    parent = os.getppid()
    with run_directory() as directory:
        try:
            specs = plan_service(options, directory)
        except SlipstreamError as error:
            log.block("slipstream could not start", f"  cause   {type(error).__name__}: {error}")
            tell_failed(options.ready_fd, error.code, str(error))
            return COULD_NOT_START
        return run(specs, options, directory, log, parent)


def run(specs: list[ChildSpec], options: ServeOptions, directory: Path, log: Log, parent: int) -> int:
    notify = Notify(os.environ)
    supervisor = Supervisor(specs, directory, log, notify)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, supervisor.on_signal)
    if options.exit_with_parent:
        supervisor.end_with(parent)
    begun = time.monotonic()
    try:
        if not supervisor.start():
            supervisor.stop()
            return DRAINED
        ready = announce(supervisor, specs, options, log, time.monotonic() - begun)
        if options.ready_fd is not None:
            tell_ready(options.ready_fd, ready)
        notify.tell("READY=1", f"STATUS=serving {ready['model']} at {ready['endpoint']}")
    except (SlipstreamError, OSError) as error:
        block = str(error) if isinstance(error, ChildFailed) else f"  cause   {error}"
        log.block("slipstream could not start", block)
        trace(error, log)
        supervisor.stop()
        kind = KINDS.get(getattr(error, "kind", ""), SlipstreamError)
        tell_failed(options.ready_fd, kind.code, block)
        return COULD_NOT_START
    last_words = "the service has stopped"
    try:
        supervisor.run()
        with contextlib.suppress(SlipstreamError):  # a drain does not depend on who is told of it
            notify.tell("STOPPING=1")
        if not supervisor.parent_gone:
            log.line(
                f"stopping; waiting up to {options.shutdown_timeout:g} s for what is under way (again: at once)"
            )
            doors = [name for name in ("http", "gateway") if name in supervisor.children]
            if not supervisor.drain(doors, options.shutdown_timeout):
                last_words = "the service was stopped before this request was finished"
                log.block(
                    "slipstream stopped before everything was finished",
                    f"  cause   {'told twice to stop' if len(supervisor.signals) > 1 else 'the drain took too long'}"
                    "; what was left is answered with an error",
                )
                return FAILED
        return DRAINED
    except SlipstreamError as error:
        last_words = f"the service failed: {getattr(error, 'cause', error)}"
        log.block("slipstream failed", str(error))
        trace(error, log)
        return FAILED
    finally:
        supervisor.stop(last_words)


def trace(error: Exception, log: Log) -> None:
    """The child's stack, for an error that is ours and not the user's."""
    report = getattr(error, "report", None)
    if report is not None and report.kind not in KINDS:
        log.line(report.trace, level="error")


def announce(
    supervisor: Supervisor, specs: list[ChildSpec], options: ServeOptions, log: Log, seconds: float
) -> dict[str, Any]:
    """The banner; returns the ready line."""
    executor = supervisor.children["executor"]
    gateway = supervisor.children["gateway"]
    facts, served = executor.facts, gateway.spec.options
    tokens = (facts["num_blocks"] - 1) * facts["block_size"]
    phases = ", ".join(f"{name} {spent:.1f} s" for name, spent in executor.phases.items() if spent >= 0.05)
    log.line(f"slipstream {__version__} serves {served['model_name']}")
    log.line(
        f"  device {facts['device']}, dtype {facts.get('dtype', '-')}, attention {facts.get('attention', '-')},"
        f" pipeline depth {facts['depth']}, CUDA graphs {facts.get('graphs', '-')}"
    )
    log.line(
        f"  KV cache {facts['num_blocks']} blocks of {facts['block_size']} = {tokens} tokens,"
        f" {tokens / served['max_model_len']:.1f} requests of {served['max_model_len']} tokens"
    )
    log.line(f"  endpoint {gateway.facts['endpoint']}")
    http = supervisor.children["http"].facts["url"] if "http" in supervisor.children else None
    if http is not None:
        log.line(f"  http {http}")
    log.line(f"ready in {seconds:.1f} s ({phases})")
    return {
        "endpoint": gateway.facts["endpoint"],
        "http": http,
        "pid": os.getpid(),
        "protocol": list(PROTOCOL),
        "model": served["model_name"],
        "control": supervisor.control_endpoint,
    }


def tell_failed(fd: int | None, code: str, message: str) -> None:
    """Tell who waits for the ready line that it will not come, and why."""
    if fd is not None:
        with contextlib.suppress(OSError):  # nobody waits any more
            os.write(fd, json.dumps({"error": code, "message": message}).encode() + b"\n")


def tell_ready(fd: int, ready: dict[str, Any]) -> None:
    try:
        os.write(fd, json.dumps(ready).encode() + b"\n")
    except OSError as error:
        raise SlipstreamError(f"--ready-fd {fd} cannot be written: {error.strerror}") from None
    os.close(fd)


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
    shared: dict[str, Any] = {
        "model": str(checkpoint.folder),
        "model_name": options.served_model_name or options.model or "slipstream-bundled",
        "max_model_len": length,
        "max_prompt_bytes": min(MAX_FRAME_BYTES // 2, max(65_536, 32 * length)),
        "vocab_size": checkpoint.vocab_size,
        "eos_token_ids": checkpoint.eos_token_ids(),
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "pipeline_depth": options.pipeline_depth,
        "seed": options.seed,
    }
    executor = shared | {
        "device": options.device,
        "for_cuda_only": options.without_effect("cpu"),
        "dtype": options.dtype,
        "block_size": options.block_size,
        "attention_backend": options.attention_backend,
        "kv_cache_memory": options.kv_cache_memory,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "load_format": options.load_format,
        "cuda_graphs": options.cuda_graphs,
        "compile": options.compile,
        "hang_timeout": options.hang_timeout,
        "check_carry_over": options.check_carry_over,
        "emulated_step_ms": EMULATED_STEP_MS
        if options.emulated_step_ms is None
        else options.emulated_step_ms,
    }
    hang_timeout_s = ACTOR_HANGS_S if options.hang_timeout is None else options.hang_timeout
    scheduler = shared | {"enable_prefix_caching": options.enable_prefix_caching}
    gateway = shared | {
        "endpoint": endpoint,
        "max_queued_requests": options.max_queued_requests,
        "default_deadline": options.default_deadline,
        "curve_keys": None if options.curve_keys is None else os.path.abspath(options.curve_keys),
        "curve_also": [],
        "server": f"slipstream {__version__}",
    }
    actors = f"{__package__}.actors"
    children = [
        ChildSpec("executor", f"{actors}.executor.build:build", executor),
        ChildSpec(
            "scheduler", f"{actors}.scheduler.scheduler:build", scheduler, hang_timeout_s=hang_timeout_s
        ),
        ChildSpec("detokenizer", f"{actors}.text.detokenizer:build", shared, hang_timeout_s=hang_timeout_s),
        ChildSpec("tokenizer", f"{actors}.text.tokenizer:build", shared, hang_timeout_s=hang_timeout_s),
        ChildSpec(
            "gateway", f"{actors}.gateway.gateway:build", gateway, waits=True, hang_timeout_s=hang_timeout_s
        ),
    ]
    if options.http is not None:
        key = None
        if options.curve_keys is not None:  # the face is a client too, with a key that is made for this one
            public, secret = new_pair()
            server, _ = KeyFolder(Path(options.curve_keys)).server()
            key = {"server": server, "public": public, "secret": secret}
            gateway["curve_also"] = [public]
        http = shared | {
            "curve": key,
            "endpoint": options.http,
            "max_queued_requests": options.max_queued_requests,
            "api_key": options.api_key,
            "metrics_prefix": options.metrics_prefix,
            "allowed_origins": [o.strip() for o in (options.allowed_origins or "").split(",") if o.strip()],
            "version": __version__,
        }
        children.append(ChildSpec("http", f"{actors}.http.server:build", http, waits=True, face_of="gateway"))
    return children
