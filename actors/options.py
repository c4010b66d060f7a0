"""The options of each actor: settled once by the service, checked, frozen, and sent to its process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..protocol.client_key import ClientKey
from ..protocol.limits import Limits
from ..protocol.messages import NO_FORMATS, Formats


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The facts about the model that actors get."""

    model: str
    """The folder, found and read already."""
    vocab_size: int
    """Token ids count from 0 to below this."""
    max_model_len: int
    """Most tokens of prompt and answer together."""
    eos_token_ids: tuple[int, ...]
    """Each of these ends an answer."""


@dataclass(frozen=True, kw_only=True)
class DetokenizerOptions(ModelOptions):
    formats: Formats = NO_FORMATS
    """The formats in which the model writes thoughts and calls."""


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions(ModelOptions):
    formats: Formats = NO_FORMATS
    max_prompt_bytes: int
    """Most bytes of UTF-8 in a prompt or in a rendered conversation."""
    chat_template: str | None = None
    """The path of a template to use instead of the model's own."""
    sanitize_control_tokens: bool = False
    """A control token in a conversation is text."""
    chat_templates: dict[str, str] | None = None
    """The templates that its first incarnation read, by name: later ones write the same prompts, whatever has become of
    the files."""


@dataclass(frozen=True, kw_only=True)
class SchedulerOptions(ModelOptions):
    max_num_seqs: int
    max_num_batched_tokens: int | None
    """None: the device's own number."""
    pipeline_depth: int
    enable_prefix_caching: bool


@dataclass(frozen=True)
class Measured:
    """The findings of an executor on a GPU when it ran its largest steps, for the executors after it."""

    captured_step_bytes: int
    """Bytes in which the largest step works that can be captured as a graph."""
    all_steps_bytes: int
    """Bytes in which the largest step of any kind works."""
    step_times: tuple[tuple[int, int], ...]
    """As ``Capacity.step_times``."""


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions(ModelOptions):
    max_num_seqs: int
    max_num_batched_tokens: int | None
    """None: the device's own number."""
    pipeline_depth: int
    block_size: int
    device: str
    """``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``emulated``."""
    for_cuda_only: tuple[str, ...]
    """Options that were given and have no effect on a CPU, which ``auto`` may turn out to be."""
    dtype: str
    quantization: str | None
    """The quantization of weights at load, ``fp8`` or ``int8``; None: they stay as they are stored."""
    adapters: tuple[tuple[str, str], ...]
    """Names and folders of those that are loaded at the start."""
    max_loras: int
    """Most adapters that are loaded at once; 0: none is served."""
    max_lora_rank: int
    attention_backend: str
    batch_invariant: bool
    """A token's logits have the same bits whatever else is computed with it."""
    load_format: str
    cuda_graphs: str
    """``auto``, ``start``, ``lazy`` or ``off``."""
    kv_cache_dtype: str
    """``auto``, which is the model's, or ``fp8``."""
    kv_cache_memory: int | None
    """Bytes; None: what ``gpu_memory_utilization`` leaves."""
    gpu_memory_utilization: float
    check_carry_over: bool
    emulated_step_ms: float
    hang_timeout: float | None
    """Seconds that a step may take; None: by the device."""
    tensor_parallel_size: int
    """The number of ranks of the executor."""
    rank: int
    """The number of this rank; rank 0 speaks with the scheduler."""
    adapters_file: str = ""
    """The file in which an executor records the adapters that it has loaded, for the next one."""
    rendezvous: str = ""
    """The path at which the ranks meet; the supervisor fills it in, anew for each of their lives."""
    keeper: str = ""
    """The path at which the keeper of the weights is asked; empty: there is none."""
    measured: Measured | None = None
    """The findings of an earlier incarnation; None: there was none, or it had nothing to measure."""


@dataclass(frozen=True, kw_only=True)
class GatewayOptions:
    endpoint: str
    """The endpoint at which clients connect."""
    model_name: str
    other_names: tuple[str, ...] = ()
    """Further names of the model, which no adapter may have."""
    limits: Limits
    formats: Formats = NO_FORMATS
    server: str
    """Name and version, for the welcome."""
    seed: int | None
    """The seed from which those of requests without one are derived; None: they differ from start to start."""
    default_deadline: float
    """Seconds."""
    lora_updates: bool = False
    """Clients may load and unload adapters."""
    curve_keys: str | None
    """The folder of the keys that clients need; None: no encryption."""
    curve_also: tuple[str, ...]
    """Public keys that may come in beside those of the folder."""
    server_dev_mode: bool = False
    """Clients may reset the prefix cache."""
    otlp_traces_endpoint: str | None = None
    """The endpoint to which spans of requests are sent; None: they are not sent."""


@dataclass(frozen=True, kw_only=True)
class RouterOptions:
    endpoint: str
    """The endpoint at which clients connect."""
    services: tuple[str, ...]
    """The endpoints of the services behind."""
    services_file: str | None = None
    """A file that names them from now on, an endpoint on each line."""
    started_in: str
    """The folder in which the router was started, where relative paths in that file begin."""
    client_key: ClientKey | None
    """The key with which the router connects to services that ask for one."""
    model_name: str
    """The name of the services' model."""
    limits: Limits
    """The limits of each service."""
    formats: Formats = NO_FORMATS
    """The formats in which their model writes thoughts and calls."""
    server: str
    """Name and version, for the welcome."""
    seed: int | None
    """As the gateway's."""
    curve_keys: str | None
    """The folder of the keys that clients need; None: no encryption."""
    curve_also: tuple[str, ...]
    """Public keys that may come in beside those of the folder."""


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    endpoint: str
    """HOST:PORT to listen at."""
    service: str = ""
    """The endpoint of the gateway or router; the supervisor fills it in when that is known."""
    curve: ClientKey | None
    """Its own key, where the gateway asks for one."""
    model: str
    model_name: str
    other_names: tuple[str, ...] = ()
    """Further names of the model; answers and metrics have the first name."""
    adapters: bool = False
    """Requests may name adapters as their model."""
    routed: bool = False
    """A router is asked, which lists no adapters."""
    limits: Limits
    chat_template: str | None = None
    chat_templates: dict[str, str] | None = None
    """The templates that its first incarnation read, by name: later ones write the same prompts, whatever has become of
    the files."""
    sanitize_control_tokens: bool = False
    """As the tokenizer's: ``/tokenize`` shows how a conversation would be tokenized."""
    version: str
    api_key: str | None
    metrics_prefix: str
    allowed_origins: tuple[str, ...]
    server_dev_mode: bool = False
    """There are endpoints for developers of the service."""
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Default fields of requests, by the name by which they call the model."""
