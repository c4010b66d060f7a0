"""The options of ``slipstream serve``, and so of ``Sidecar`` and ``LLM``: one table for all of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..actors.executor.devices.kinds import KINDS, kind_of
from ..protocol.errors import InvalidRequest
from ..protocol.formats.formats import REASONING, TOOL_CALLS
from ..protocol.limits import MAX_DEADLINE_S, MAX_SEED
from ..runtime.options.table import changed, option
from ..runtime.options.values import size
from .access import check_access, http_error, key_error
from .adapters import UPDATED_LORAS, adapters_of, check_adapters, lora_error

MAX_SEQUENCES = 65_536
"""Most that a service can run at once."""


EVERYDAY = "everyday"
BATCHING = "batching and memory"
LIFE = "life of the process"


SPELLED = [f"{name}, {name}:N" if kind.numbered else name for name, kind in KINDS.items()]
DEVICES = f"auto, {', '.join(SPELLED[:-1])} or {SPELLED[-1]}"


def device_error(name: str) -> str | None:
    kind, colon, number = name.partition(":")
    if name == "auto" or (kind in KINDS and (not colon or (KINDS[kind].numbered and number.isdecimal()))):
        return None
    return f"is no device; give {DEVICES}"


def prefix_error(text: str) -> str | None:
    if re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", text):
        return None
    return "is no beginning of a metric's name; give letters, digits, _ and : and no digit first"


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """All options of a service."""

    model: str | None = option(
        None, "a local folder or a hub name; left out: the bundled model", group=EVERYDAY, positional=True
    )
    endpoint: str | None = option(
        None,
        "where clients connect: ipc://PATH or tcp://HOST:PORT, port 0 for a free one"
        " (default: a private ipc path, shown when ready)",
        group=EVERYDAY,
        metavar="URL",
    )
    http: str | None = option(
        None,
        "serve OpenAI's API here as well; port 0 for a free one",
        group=EVERYDAY,
        metavar="HOST:PORT",
        verify=http_error,
    )
    api_key: str | None = option(
        None,
        "the key that HTTP clients must send as Authorization: Bearer KEY; better given in the environment",
        group=EVERYDAY,
        metavar="KEY",
        secret=True,
        verify=key_error,
    )
    served_model_name: str | None = option(
        None,
        "the model's name towards clients, or several with commas between: over HTTP any of them is taken, answers and"
        " metrics have the first (default: as it is given)",
        group=EVERYDAY,
        metavar="NAME",
        verify=lambda names: None if names.strip(" ,") else "has no name in it; give one, or leave it out",
    )
    model_defaults: str | None = option(
        None,
        "with --http: a JSON file of what requests have by default under each served name:"
        ' {"NAME": {"temperature": 0.6, "chat_template_kwargs": {...}}}',
        group=EVERYDAY,
        metavar="FILE",
    )
    chat_template: str | None = option(
        None,
        "a jinja file to write conversations with (default: the model's own template)",
        group=EVERYDAY,
        metavar="FILE",
    )
    reasoning_parser: str | None = option(
        None,
        "how the model marks its thoughts (default: as its chat template does)",
        group=EVERYDAY,
        choices=tuple(REASONING),
    )
    tool_call_parser: str | None = option(
        None,
        "how the model writes calls of tools (default: as its chat template does)",
        group=EVERYDAY,
        choices=TOOL_CALLS,
    )
    otlp_traces_endpoint: str | None = option(
        None,
        "send OpenTelemetry spans of each request to this URL, by OTLP over HTTP, such as"
        " http://127.0.0.1:4318/v1/traces",
        group=EVERYDAY,
        metavar="URL",
    )
    server_dev_mode: bool = option(
        False, "let clients reset the prefix cache and, over HTTP, take profiles", group=EVERYDAY
    )
    sanitize_control_tokens: bool = option(
        False, "take the names of control tokens in conversations for text", group=EVERYDAY
    )
    device: str = option(
        "auto",
        f"where the model runs: {DEVICES}; the last takes a stated time and has no model",
        group=EVERYDAY,
        metavar="NAME",
        verify=device_error,
    )
    dtype: str = option(
        "auto",
        "the type of numbers in weights and cache; auto: the model's own",
        group=EVERYDAY,
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    quantization: str | None = option(
        None,
        "what the weights of the layers become at load, with a scale for each row; on a CPU they are only rounded",
        group=EVERYDAY,
        choices=("fp8", "int8"),
    )
    lora: str | None = option(
        None,
        "an adapter (LoRA, as peft saves it) that requests may name as their model; may be given several times",
        group=EVERYDAY,
        metavar="NAME=PATH",
        many=True,
        verify=lora_error,
    )
    enable_lora_updates: bool = option(
        False,
        "let clients load and unload adapters while the service runs, from any folder that it can read",
        group=EVERYDAY,
    )
    max_model_len: int | None = option(
        None,
        "most tokens of prompt and answer (default: the model's)",
        group=EVERYDAY,
        metavar="N",
        low=2,
        high=2**24,
    )
    seed: int | None = option(
        None,
        "draw the seeds of requests that give none from this one, so that a run can be repeated",
        group=EVERYDAY,
        metavar="N",
        low=0,
        high=MAX_SEED,
    )
    config: str | None = option(
        None, "take options from a TOML or JSON file", group=EVERYDAY, metavar="FILE", in_file=False
    )
    print_config: bool = option(
        False, "print every option and where its value is from, then end", group=EVERYDAY, in_file=False
    )

    max_num_seqs: int = option(
        256, "most sequences that run at once", group=BATCHING, metavar="N", low=1, high=MAX_SEQUENCES
    )
    max_num_batched_tokens: int | None = option(
        None,
        "most tokens in one step (default: 2048, on a CPU 512, and never less than max-num-seqs)",
        group=BATCHING,
        metavar="N",
        low=1,
        high=2**20,
    )
    max_queued_requests: int = option(
        1024,
        "most requests held at once, running ones included",
        group=BATCHING,
        metavar="N",
        low=1,
        high=1_000_000,
    )
    block_size: int = option(
        16, "tokens in one block of the cache", group=BATCHING, metavar="N", low=1, high=1024
    )
    gpu_memory_utilization: float = option(
        0.9, "share of the GPU's memory to use", group=BATCHING, metavar="F", above=0.0, high=1.0
    )
    kv_cache_memory: int | None = option(
        None,
        "bytes for the cache, 512M or 2G for example (default: what is left on a GPU, 1 GiB on a CPU)",
        group=BATCHING,
        metavar="BYTES",
        low=1,
        high=1 << 50,  # 1,024 TiB
        parse=size,
    )
    kv_cache_dtype: str = option(
        "auto",
        "the type of numbers in the cache; fp8: a byte each, so that twice the tokens fit, which changes what the model"
        " writes a little; auto: as in the weights",
        group=BATCHING,
        choices=("auto", "fp8"),
    )
    pipeline_depth: int = option(
        2, "steps under way at once; 1: synchronous", group=BATCHING, metavar="N", low=1, high=8
    )
    enable_prefix_caching: bool = option(
        True, "reuse what is cached of prompts that begin the same", group=BATCHING
    )
    tensor_parallel_size: int = option(
        1,
        "ranks that share the model, each with a part of every layer: on GPUs each has one of its own",
        group=BATCHING,
        metavar="N",
        low=1,
        high=64,
    )
    attention_backend: str = option("auto", "how attention is computed", group=BATCHING, metavar="NAME")
    max_loras: int | None = option(
        None,
        "most adapters that are loaded at once; each takes memory (default: those of --lora, and with"
        f" --enable-lora-updates at least {UPDATED_LORAS})",
        group=BATCHING,
        metavar="N",
        low=1,
        high=1024,
    )
    max_lora_rank: int = option(
        16,
        "highest rank of an adapter; each takes memory for it",
        group=BATCHING,
        metavar="N",
        low=1,
        high=1024,
    )
    batch_invariant: bool = option(
        False,
        "give a token logits of the same bits whatever else is computed with it, so that the same request has the same"
        " answer in any dtype, after a restart too; slower",
        group=BATCHING,
    )
    load_format: str = option(
        "auto",
        "where the weights come from; dummy: random ones made on the device, for measuring",
        group=BATCHING,
        choices=("auto", "dummy"),
    )
    cuda_graphs: str = option(
        "auto",
        "when the graphs of steps are captured: all at the start, lazily, one by one between steps, or never;"
        " auto: lazily, and never for a model of which none can be captured",
        group=BATCHING,
        choices=("auto", "start", "lazy", "off"),
    )
    check_carry_over: bool = option(
        False,
        "for debugging: end the executor when a step reads a token that no step has written",
        group=BATCHING,
    )
    emulated_step_ms: float | None = option(
        None,
        "how long a step takes on --device emulated",
        group=BATCHING,
        metavar="MS",
        low=0.0,
        high=60_000.0,
    )

    shutdown_timeout: float = option(
        30.0,
        "seconds that running requests have to finish after SIGTERM",
        group=LIFE,
        metavar="S",
        low=0.0,
        high=86_400.0,
    )
    default_deadline: float = option(
        3600.0,
        "most seconds for a request that states no deadline_s",
        group=LIFE,
        metavar="S",
        above=0.0,
        high=MAX_DEADLINE_S,
    )
    hang_timeout: float | None = option(
        None,
        "seconds without progress after which an actor that has something to do is ended and started again"
        " (default: 10, and for a step of the executor 60; on the CPU ten times what the steps until now let expect,"
        " and 60 without a sign of life)",
        group=LIFE,
        metavar="S",
        low=0.2,
        high=86_400.0,
    )
    spare_executor: str = option(
        "auto",
        "keep a process that has imported what an executor needs, from which the next one is forked in a moment; auto:"
        " with a GPU, and on a CPU where 2 GB of memory are free",
        group=LIFE,
        choices=("auto", "on", "off"),
    )
    weights_keeper: str = option(
        "auto",
        "hold the weights in a process of their own, so that an executor that starts again finds them where they were;"
        " auto: with a GPU, where the driver can do it",
        group=LIFE,
        choices=("auto", "on", "off"),
    )
    ready_fd: int | None = option(
        None,
        "write one line of JSON to this file descriptor when ready",
        group=LIFE,
        metavar="N",
        low=0,
        high=2**31 - 1,
        in_file=False,
    )
    exit_with_parent: bool = option(False, "end when the parent process ends", group=LIFE, in_file=False)
    log_format: str = option(
        "auto",
        "form of the log on stderr; auto: text, and in Kubernetes json",
        group=LIFE,
        choices=("auto", "text", "json"),
    )
    allowed_origins: str | None = option(
        None,
        "origins of web pages that may use OpenAI's API, with commas between them, * for any (default: none)",
        group=LIFE,
        metavar="URL,…",
    )
    metrics_prefix: str = option(
        "slipstream_",
        "beginning of all names under /metrics; vllm: for dashboards that are made for vLLM",
        group=LIFE,
        metavar="TEXT",
        verify=prefix_error,
    )
    curve_keys: str | None = option(
        None,
        "a folder made by slipstream keys: clients need a key that it lists, and what they say is encrypted",
        group=LIFE,
        metavar="FOLDER",
    )
    insecure: bool = option(False, "let anyone reach a TCP or HTTP endpoint from other machines", group=LIFE)

    @staticmethod
    def derive(values: dict[str, Any], given: set[str]) -> dict[str, tuple[Any, str]]:
        """Each running sequence decodes one token per step: the number of sequences yields if it was not given."""
        seqs, tokens = values["max_num_seqs"], values["max_num_batched_tokens"]
        if tokens is not None and seqs > tokens and "max_num_seqs" not in given:
            return {"max_num_seqs": (tokens, "lowered to max-num-batched-tokens")}
        return {}

    def without_effect(self, device: str) -> list[str]:
        """Options that were changed, and that ``device`` does nothing with."""
        return [name for name in kind_of(device).without_effect if changed(self, name)]

    def check(self, spell: Callable[[str], str]) -> None:
        """Refuse what does not fit together; ``spell`` shows an option as the user gave it."""
        if self.max_num_batched_tokens is not None and self.max_num_seqs > self.max_num_batched_tokens:
            raise InvalidRequest(
                f"{spell('max_num_batched_tokens')} is less than {spell('max_num_seqs')}: each running"
                " sequence decodes one token in each step; raise the one or lower the other"
            )
        if self.emulated_step_ms is not None and self.device != "emulated":
            raise InvalidRequest(
                f"{spell('emulated_step_ms')} has no effect with {spell('device')}; add --device emulated"
            )
        unused = [] if self.device == "auto" else self.without_effect(self.device)
        if unused:
            raise InvalidRequest(f"{spell(unused[0])} has no effect with {spell('device')}; leave it out")
        if changed(self, "kv_cache_memory") and changed(self, "gpu_memory_utilization"):
            raise InvalidRequest(
                f"{spell('gpu_memory_utilization')} has no effect with {spell('kv_cache_memory')}; leave out one"
            )
        if self.batch_invariant and self.tensor_parallel_size > 1:
            raise InvalidRequest(
                f"{spell('batch_invariant')} is not possible with {spell('tensor_parallel_size')}: the sums of"
                " ranks are left to the library that exchanges them; leave out one"
            )
        check_adapters(self, spell)
        check_access(self, spell)

    @property
    def served_names(self) -> list[str]:
        """The names of the model towards clients; answers have the first."""
        given = (self.served_model_name or "").split(",")
        names = list(dict.fromkeys(name.strip() for name in given if name.strip()))
        return names or [self.model or "slipstream-bundled"]

    @property
    def adapter_slots(self) -> int:
        """The number of adapters that can be loaded at once."""
        given = len(adapters_of(self.lora))
        return self.max_loras or max(given, UPDATED_LORAS if self.enable_lora_updates else 0)
