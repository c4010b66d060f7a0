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
    folder = find_model(options.model)
    needs_weights = options.device != "emulated" and options.load_format != "dummy"
    if needs_weights and not any(folder.glob("*.safetensors")):
        # The executor would say so too, seconds later.
        raise InvalidRequest(f"model {str(folder)!r}: the folder has no weights; looked for *.safetensors")
    config = read_json(folder / "config.json")
    limit = max_model_len_of(config)
    if limit is None and options.max_model_len is None:
        raise InvalidRequest("the model's config.json states no length; give --max-model-len")
    length = options.max_model_len or limit or 0
    if limit is not None and length > limit:
        raise InvalidRequest(f"max_model_len={length} is over the model's own limit of {limit} tokens")
    endpoint = options.endpoint or f"ipc://{directory}/gateway"
    check_endpoint(endpoint, insecure=options.insecure or options.curve_keys is not None)
    shared: dict[str, Any] = {
        "model": str(folder),
        "model_name": options.served_model_name or options.model or "slipstream-bundled",
        "max_model_len": length,
        "max_prompt_bytes": min(MAX_FRAME_BYTES // 2, max(65_536, 32 * length)),
        "vocab_size": text_config(config)["vocab_size"],
        "eos_token_ids": eos_token_ids(folder, config),
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


def find_model(model: str | None) -> Path:
    """The folder of the model: a folder as it is, a hub name from the cache or the hub."""
    if model is None:
        return BUNDLED_MODEL
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InvalidRequest(f"model {model!r}: the folder has no config.json")
        return folder.resolve()
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise InvalidRequest(f"model {model!r}: there is no such folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))
    except Exception as error:  # the hub client raises its own and its transport's kinds
        raise InvalidRequest(
            f"model {model!r}: no such folder, and it could not be fetched as a hub name: {first_line(error)}"
        ) from None


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path}: {first_line(error)}") from None


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a model's configuration that describes its decoder."""
    found = config.get("text_config", config)
    if "vocab_size" not in found:
        raise InvalidRequest("the model's config.json has no vocab_size; is it a causal language model?")
    return found


def max_model_len_of(config: dict[str, Any]) -> int | None:
    """Most tokens that the model is made for; None if it does not say."""
    text = text_config(config)
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) == "longrope":
        # Beyond the original length the frequencies change with the batch, so it is not served.
        original = rope.get("original_max_position_embeddings") or text.get(
            "original_max_position_embeddings"
        )
        if isinstance(original, int):
            return original
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"):
        if isinstance(text.get(name), int):
            return text[name]
    return None


def eos_token_ids(folder: Path, config: dict[str, Any]) -> list[int]:
    """Every token that ends an answer, from both files that may name one or several."""
    sources = [config, config.get("text_config", {})]
    if (folder / "generation_config.json").is_file():
        sources.append(read_json(folder / "generation_config.json"))
    found: set[int] = set()
    for source in sources:
        ids = source.get("eos_token_id")
        found.update([ids] if isinstance(ids, int) else ids or ())
    return sorted(found)
