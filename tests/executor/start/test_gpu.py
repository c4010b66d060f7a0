"""What an executor decides on a GPU: when graphs are captured, and how memory is divided.

The GPU is a CPU that says how much memory it has; what stands in for its graphs is that of ``replay.py``.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from rank_threads import at_once, groups
from replay import Replay, Replays
from slipstream.actors.executor.devices.cpu import CpuDevice
from slipstream.actors.executor.model.loading.load import from_config
from slipstream.actors.executor.model.paged_model import PagedModel
from slipstream.actors.executor.ranks.shard_loading import divide
from slipstream.actors.executor.start import build, memory
from slipstream.actors.executor.start import gpu as module
from slipstream.actors.executor.start.engine import Engine
from slipstream.actors.executor.start.gpu import on_gpu
from slipstream.actors.executor.start.memory import GRAPH_BYTES_PER_LAYER
from slipstream.actors.executor.step.buckets import buckets_of
from slipstream.actors.executor.step.model_runner import ModelRunner
from slipstream.actors.options import ExecutorOptions, ModelOptions
from slipstream.protocol.errors import InvalidRequest, SlipstreamError
from slipstream.runtime.machine.memory import available
from stream_order import StreamOrder
from tiny_models import make_config

from slipstream.options.serve import ServeOptions
from slipstream.serving.service import executor_options

LENGTH, SLOTS, BLOCK, BUDGET = 64, 4, 8, 32
MODEL = ModelOptions(model="/nowhere", vocab_size=10, max_model_len=LENGTH, eos_token_ids=())
STEP_BYTES = 5 << 20
"""What the largest step works in."""
ROOM = 9 << 20
"""What all steps have taken."""


@dataclass
class Gpu(CpuDevice):
    """A CPU with so much memory as a test says."""

    free: int = 1 << 30
    total: int = 1 << 30
    largest_fits: bool = True
    takes: tuple[int, ...] = (STEP_BYTES,)
    """What one step after the other works in; those that follow, as much as the last."""
    rooms: int = 1 << 30
    """How often there is room to run a step that is captured."""
    measured: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        with torch.inference_mode():
            yield

    def synchronize(self) -> None:
        """Nothing is queued."""

    def memory(self) -> tuple[int, int]:
        return self.free, self.total

    def taken(self) -> int:
        return ROOM if self.measured else 0

    def has_room(self, size: int) -> bool:
        assert size in (STEP_BYTES, ROOM)
        self.rooms -= 1
        return self.rooms >= 0

    def peak_memory(self, work: Callable[[], None]) -> int:
        if not self.largest_fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        with self.computing():
            work()
        self.measured.append(self.free)
        return self.takes[min(len(self.measured), len(self.takes)) - 1]


class Graphs(Replays):
    """Captured graphs; memory ends with ``room`` of them."""

    bytes = 3 << 20

    def __init__(self, room: int = 1 << 30) -> None:
        super().__init__()
        self.seconds = 0.0
        self.room = room

    def capture(self, prepare: Callable[[], None] | None, work: Callable[[], None]) -> Replay:
        if self.count == self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has little")
        self.seconds += 0.25
        return super().capture(prepare, work)


class Context:
    crashed = False

    def __init__(self, *, restarted: bool) -> None:
        self.restarted = restarted
        self.prepared = None
        self.phases: list[str] = []

    def phase(self, name: str) -> None:
        self.phases.append(name)


def model_of(kind: str = "llama", **settings: Any) -> PagedModel:
    config = make_config(kind, max_position_embeddings=LENGTH, **settings)
    model = from_config(config, torch.device("cpu"), torch.float32)
    model.backend.capturable = True  # as that of a GPU
    return model


def engine_of(
    gpu: Gpu | None = None,
    graphs: Graphs | None = None,
    model: PagedModel | None = None,
    restarted: bool = False,
    before: Engine | None = None,
    **asked: Any,
) -> Engine:
    """``before``: of the incarnation before, whose facts have come by way of the supervisor."""
    options = executor_options(
        ServeOptions(
            max_num_seqs=SLOTS, max_num_batched_tokens=BUDGET, block_size=BLOCK, device="cuda", **asked
        ),
        MODEL,
    )
    if before is not None:
        settled = msgspec.msgpack.decode(msgspec.msgpack.encode(before.facts["settled"]))
        options = msgspec.convert(asdict(options) | settled, ExecutorOptions)
    made: Any = (Context(restarted=restarted), options, model or model_of(), gpu or Gpu(), graphs or Graphs())
    return on_gpu(*made)


# --- when graphs are captured ---------------------------------------------------------------------------


def test_all_graphs_are_captured_before_it_is_ready_where_that_is_asked() -> None:
    engine = engine_of(cuda_graphs="start")
    buckets = buckets_of(SLOTS, BUDGET, LENGTH)
    count = buckets.num_forward_graphs + 2 * len(buckets.decode)
    assert engine.facts["graphs"].startswith(f"{count} in {count * 0.25:.1f} s, 3 MiB (")
    assert engine.buckets == buckets


@pytest.mark.parametrize("restarted", [False, True])
def test_nobody_waits_for_graphs(caplog: pytest.LogCaptureFixture, restarted: bool) -> None:
    graphs = Graphs()
    engine = engine_of(graphs=graphs, restarted=restarted)
    assert graphs.count == 1
    assert engine.facts["graphs"].startswith("1 in ")
    assert engine.catching_up
    assert engine.background_work is not None
    with caplog.at_level(logging.INFO, "slipstream"):
        while (took_s := engine.background_work()) is not None:
            assert took_s == 0.25
    [said] = [record.getMessage() for record in caplog.records]
    assert said == f"the executor is at full speed; CUDA graphs {engine.facts['graphs']}"
    assert engine.facts["graphs"].startswith(f"{graphs.count} in ")
    asked = engine_of(restarted=restarted, cuda_graphs="start")
    assert asked.catching_up is False


@pytest.mark.parametrize("graphs", ["lazy", "off"])
def test_what_an_incarnation_before_has_measured_is_not_run_again(graphs: str) -> None:
    """Streams wait. What steps will take is there, and the cache is as large."""
    gpus, captured = [Gpu(), Gpu()], Graphs()
    first = engine_of(gpus[0], cuda_graphs=graphs)
    again = engine_of(gpus[1], captured, restarted=True, before=first, cuda_graphs=graphs)
    assert gpus[1].measured == []
    assert gpus[1].rooms == (1 << 30) - 1
    assert captured.count == 0
    assert (again.blocks, again.step_times) == (first.blocks, first.step_times)
    assert len(first.step_times) > 2
    third = engine_of(gpu := Gpu(), restarted=True, before=again, cuda_graphs=graphs)
    assert gpu.measured == []
    assert third.step_times == first.step_times
    if again.background_work is not None:
        assert again.catching_up
        while again.background_work() is not None:
            pass
        assert again.facts["graphs"].startswith(f"{captured.count} in ")


def test_a_start_that_has_no_room_for_what_was_measured_says_so_and_one_that_knows_nothing_measures() -> None:
    first = engine_of()
    with pytest.raises(
        SlipstreamError, match=f"a step of {BUDGET} tokens and {SLOTS} sequences does not fit"
    ):
        engine_of(Gpu(rooms=0), restarted=True, before=first)
    for restarted, before in ((True, None), (False, first)):
        engine_of(gpu := Gpu(), restarted=restarted, before=before)
        assert len(gpu.measured) == 2


def test_kernels_of_other_packages_try_themselves_out_on_steps_of_nobody() -> None:
    """Recurrent layers have such: what they do in a trial would stay in the states of sequences."""
    first = engine_of(model=model_of("qwen3_5_text"))
    engine_of(gpu := Gpu(), model=model_of("qwen3_5_text"), restarted=True, before=first)
    assert len(gpu.measured) == 3


def test_all_is_compiled_again_where_somebody_has_emptied_the_cache_of_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = engine_of()
    monkeypatch.setattr(module, "some_are_compiled", lambda device: False)
    engine_of(gpu := Gpu(), restarted=True, before=first)
    assert len(gpu.measured) == 2


def test_without_graphs_a_step_is_as_large_as_it_is() -> None:
    engine = engine_of(cuda_graphs="off")
    assert engine.facts["graphs"] == "off"
    assert engine.buckets is None
    assert engine.background_work is None
    assert isinstance(engine.runner, ModelRunner)


def test_why_no_graph_is_captured_is_told() -> None:
    model = model_of()
    model.backend.capturable = False
    reason = "the attention backend 'torch' asks the host for the lengths of rows"
    engine = engine_of(model=model)
    assert engine.facts["graphs"] == f"off: {reason}"
    assert engine.buckets is None
    for mode in ("start", "lazy"):
        with pytest.raises(InvalidRequest, match=f"cuda_graphs='{mode}' is not possible: {reason}"):
            engine_of(model=model, cuda_graphs=mode)
    assert engine_of(model=model, cuda_graphs="off").facts["graphs"] == "off"


def test_a_mixture_of_experts_is_captured_in_bfloat16_alone() -> None:
    model = model_of("mixtral")
    assert "a mixture of experts in torch.float32 asks the host" in model.uncapturable
    model.dtype = torch.bfloat16
    assert model.uncapturable == ""


def test_of_a_model_with_states_only_steps_that_decode_are_captured() -> None:
    engine = engine_of(model=model_of("qwen3_5_text"), cuda_graphs="start")
    count = 3 * len(buckets_of(SLOTS, BUDGET, LENGTH).decode)
    assert engine.facts["graphs"].startswith(f"{count} in {count * 0.25:.1f} s")
    assert "share nothing, since a state is in no block" in engine.facts["states"][0]
    assert engine_of().facts["states"] == []


# --- streams ----------------------------------------------------------------------------------------------


class StreamingGpu(Gpu):
    """Has a compute stream, which only a wait puts in order with the default one."""

    def __init__(self, order: StreamOrder) -> None:
        super().__init__()
        self.order = order

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        with self.order.on_compute(), super().computing():
            yield

    def synchronize(self) -> None:
        self.order.waited()


class StreamingGraphs(Graphs):
    """Captures on the compute stream, for which it waits."""

    def __init__(self, gpu: StreamingGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def capture(self, prepare: Callable[[], None] | None, work: Callable[[], None]) -> Replay:
        with self.gpu.computing():
            return super().capture(prepare, work)


@pytest.mark.parametrize("family", ["llama", "qwen3_5_text", "falcon_h1"])
@pytest.mark.parametrize("graphs", ["off", "lazy", "start"])
def test_no_step_of_the_start_reads_what_another_stream_has_yet_to_write(family: str, graphs: str) -> None:
    """It would take whatever is in memory for slots of sequences: an index out of bounds ends the GPU's context."""
    model, order = model_of(family), StreamOrder()
    gpu = StreamingGpu(order)
    with order:
        engine_of(gpu, StreamingGraphs(gpu), model, cuda_graphs=graphs)
    assert order.unordered == []


# --- memory -----------------------------------------------------------------------------------------------


def test_the_cache_gets_what_steps_and_graphs_leave() -> None:
    model = model_of()
    per_block = model.kv_layout.bytes_per_block(BLOCK, model.dtype)
    layers = len(model.kv_layout.layers)
    graphs = (
        STEP_BYTES + buckets_of(SLOTS, BUDGET, LENGTH).num_forward_graphs * layers * GRAPH_BYTES_PER_LAYER
    )
    total = 1 << 30
    free = total // 10 + graphs + 7 * per_block + 1
    gpu = Gpu(free=free, total=total)
    assert engine_of(gpu).blocks == 7
    assert len(gpu.measured) == 2, "the largest step, and the one that asks for most, have run before"
    assert engine_of(Gpu(free=free - graphs, total=total), cuda_graphs="off").blocks == 7


class CountingGpu(Gpu):
    """Has the memory that tensors and buffers which were made since then leave."""

    def __init__(self, total: int) -> None:
        super().__init__(total=total)
        self.before = living()

    def memory(self) -> tuple[int, int]:
        return self.total - (living() - self.before), self.total


def living() -> int:
    """Bytes of all tensors that there are."""
    gc.collect()
    storages = [item.untyped_storage() for item in gc.get_objects() if isinstance(item, torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize("graphs", ["off", "lazy"])
def test_the_cache_leaves_room_for_every_table_that_grows_with_slots_and_length(
    monkeypatch: pytest.MonkeyPatch, graphs: str
) -> None:
    """Slots of 131,072 tokens: tables of 34 MB, where a tenth of 256 MB is left for all that follows."""
    monkeypatch.setattr(build, "load_grammars", lambda *about: "this model has no tokenizer")
    slots, length = 64, 131_072
    options = executor_options(
        ServeOptions(
            max_num_seqs=slots, max_num_batched_tokens=slots, block_size=16, device="cuda", cuda_graphs=graphs
        ),
        replace(MODEL, max_model_len=length),
    )
    model, total = model_of(), 1 << 28
    gpu = CountingGpu(total)
    context: Any = Context(restarted=True)
    made: Any = (context, options, model, gpu, Graphs())
    executor = build.assemble(context, options, on_gpu(*made))
    backend: Any = model.backend
    backend._step = None  # the last step's masks: what steps work in is measured apart
    of_host = sum(slot.staging.nbytes + slot.results.nbytes for slot in executor.pipeline.slots)
    used = total - gpu.memory()[0] - of_host
    assert 0.9 * total < used < total
    gpu.close()


def test_no_memory_is_kept_back_for_graphs_of_prompts_where_states_rule_them_out() -> None:
    model = model_of("qwen3_5_text")
    decode = buckets_of(SLOTS, BUDGET, LENGTH).decode
    kept = (3 << 20) + len(decode) * len(model.kv_layout.layers) * GRAPH_BYTES_PER_LAYER
    gpu = Gpu(takes=(50 << 20, 60 << 20, 3 << 20))
    engine = engine_of(gpu, model=model, cuda_graphs="start")
    assert engine.facts["graphs"].endswith(f"({kept >> 20} were kept back)")
    assert len(gpu.measured) == 3, "prompts too have run before the cache takes its memory"


@pytest.mark.parametrize(
    ("gpu", "asked", "said", "hint"),
    [
        (
            {"free": 1 << 20},
            {},
            r"the KV cache has 0 bytes, after \d+ are kept for CUDA graphs, and one block takes \d+; 2 blocks",
            "raise --gpu-memory-utilization, or lower --max-num-batched-tokens or --max-num-seqs, with which a step"
            " takes less, or do without graphs: --cuda-graphs off",
        ),
        (
            {"free": (6 << 20) + 5000},
            {"kv_cache_memory": 1 << 30},
            r"the KV cache has \d+ bytes, after \d+ are kept for CUDA graphs, and one block takes \d+; 33 blocks",
            "lower --kv-cache-memory, or lower --max-num-batched-tokens or --max-num-seqs, with which a step"
            " takes less, or do without graphs: --cuda-graphs off",
        ),
        (
            {},
            {"kv_cache_memory": 1, "cuda_graphs": "off"},
            "the KV cache has 1 bytes and one block takes",
            "raise --kv-cache-memory, or lower --max-num-batched-tokens or --max-num-seqs, with which a step"
            " takes less",
        ),
        (
            {"largest_fits": False},
            {},
            "a step of 32 tokens and 4 sequences does not fit beside the weights",
            "lower --max-num-batched-tokens or --max-num-seqs",
        ),
    ],
    ids=["share", "stated", "stated too little", "step"],
)
def test_where_memory_is_short_what_to_lower_is_told(
    gpu: dict[str, Any], asked: dict[str, Any], said: str, hint: str
) -> None:
    with pytest.raises(SlipstreamError, match=said) as refused:
        engine_of(Gpu(**gpu), **asked)
    assert refused.value.hint == hint


def test_a_graph_without_memory_ends_nothing_but_the_capturing(caplog: pytest.LogCaptureFixture) -> None:
    """At the start and while the service runs; it is told once."""
    with caplog.at_level(logging.WARNING, "slipstream"):
        engine = engine_of(graphs=Graphs(room=5), cuda_graphs="start")
    assert engine.facts["graphs"].startswith("5 in ")
    assert engine.facts["graphs"].endswith(", no memory for more")
    assert engine.background_work is not None
    assert engine.background_work() is None, "nothing is wanted any more"
    assert [record.getMessage() for record in caplog.records] == [
        "no memory for more than 5 CUDA graphs: steps without one run kernel by kernel; lower"
        " --gpu-memory-utilization or --kv-cache-memory"
    ]


def test_an_idle_executor_survives_a_graph_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "load_grammars", lambda *about: "this model has no tokenizer")
    options = executor_options(
        ServeOptions(max_num_seqs=SLOTS, max_num_batched_tokens=BUDGET, block_size=BLOCK, device="cuda"),
        MODEL,
    )
    engine = engine_of(graphs=Graphs(room=2), cuda_graphs="lazy")
    context: Any = Context(restarted=False)
    executor = build.assemble(context, options, engine)
    for _ in range(9):
        executor.wake(0.0)
    assert executor.wake_at is None, "an idle service uses no CPU"
    executor.pipeline.device.close()


def test_states_that_do_not_fit_are_named_with_how_many_do() -> None:
    model = model_of("falcon_h1")
    each, total = model.state_layout.bytes_per_slot, 1 << 30
    free = total // 10 + 3 * each + 1
    with pytest.raises(InvalidRequest) as refused:
        engine_of(Gpu(free=free, total=total), model=model)
    assert f"max_num_seqs={SLOTS}: the recurrent layers of this model keep {each} bytes" in str(refused.value)
    assert "lower --max-num-seqs to 2 or less" in str(refused.value)
    with pytest.raises(InvalidRequest, match="not even one sequence has room"):
        engine_of(Gpu(free=total // 10 + each, total=total), model=model)


def test_ranks_on_a_cpu_share_what_linux_can_make_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    6000 kB\n")
    assert available(meminfo) == 6000 << 10
    model = model_of("falcon_h1")
    room = (SLOTS + 1) * model.state_layout.bytes_per_slot
    monkeypatch.setattr(memory, "available", lambda: room)
    for ranks in (1, 2):
        options = executor_options(ServeOptions(max_num_seqs=SLOTS, tensor_parallel_size=ranks), MODEL)
        with (
            contextlib.nullcontext()
            if ranks == 1
            else pytest.raises(InvalidRequest, match=f"there are {room // 2}")
        ):
            memory.check_states(options, model, None)


def test_a_model_that_never_attends_has_blocks_that_take_no_memory() -> None:
    engine = engine_of(model=model_of("mamba2"))
    assert engine.blocks == 1 + SLOTS * LENGTH // BLOCK
    assert engine.facts["kv_cache_bytes"] == 0
    assert engine.facts["state_bytes"] > 0


# --- several ranks ----------------------------------------------------------------------------------------


class LateGraphs(Graphs):
    """Memory ends when a graph was computed once and is about to be kept."""

    def capture(self, prepare: Callable[[], None] | None, work: Callable[[], None]) -> Replay:
        graph = Replays.capture(self, prepare, work)
        if self.count > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return graph


@pytest.fixture
def two_ranks() -> list[PagedModel]:
    models = [model_of(), model_of()]
    at_once(divide, models, groups(2))
    return models


def test_all_ranks_have_the_blocks_of_the_one_that_has_room_for_fewest(two_ranks: list[PagedModel]) -> None:
    def blocks(free: int, model: PagedModel) -> int:
        return engine_of(Gpu(free=free, total=free), model=model, cuda_graphs="off").blocks

    per_block = two_ranks[0].kv_layout.bytes_per_block(BLOCK, torch.float32)
    assert at_once(blocks, [1 << 30, 10 * per_block], two_ranks) == [9, 9]


def test_no_rank_captures_on_where_another_has_no_memory(two_ranks: list[PagedModel]) -> None:
    engines = at_once(
        lambda graphs, model: engine_of(graphs=graphs, model=model, cuda_graphs="start"),
        [LateGraphs(), LateGraphs(3)],
        two_ranks,
    )
    told = [engine.facts["graphs"] for engine in engines]
    assert [text.partition(" ")[0] for text in told] == ["4", "3"]
    assert all(text.endswith("no memory for more") for text in told)


def test_no_rank_begins_to_capture_what_another_has_no_room_to_run(two_ranks: list[PagedModel]) -> None:
    """It would wait in a collective for one that has broken off."""
    engines = at_once(
        lambda gpu, model: engine_of(gpu, model=model, cuda_graphs="start"), [Gpu(), Gpu(rooms=3)], two_ranks
    )
    told = [engine.facts["graphs"] for engine in engines]
    assert [text.partition(" ")[0] for text in told] == ["3", "3"]
    assert all(text.endswith("no memory for more") for text in told)


def test_ranks_capture_when_they_are_ready_whether_they_were_there_before_or_not(
    two_ranks: list[PagedModel],
) -> None:
    """Each is told by itself whether it was, and they have to capture the same: at the start the largest alone."""
    engines = at_once(
        lambda restarted, model: engine_of(model=model, restarted=restarted), (True, False), two_ranks
    )
    assert [engine.catching_up for engine in engines] == [True, True]
    assert [engine.facts["graphs"].partition(" ")[0] for engine in engines] == ["1", "1"]


def test_a_rank_measures_as_long_as_another_has_not(two_ranks: list[PagedModel]) -> None:
    """They compute the steps of that together."""
    first = at_once(lambda model: engine_of(model=model), two_ranks)
    gpus = [Gpu(), Gpu()]
    at_once(
        lambda gpu, model, before: engine_of(gpu, model=model, restarted=True, before=before),
        gpus,
        two_ranks,
        [first[0], None],
    )
    assert [len(gpu.measured) for gpu in gpus] == [2, 2]


def test_a_rank_that_has_all_its_graphs_waits_for_no_other(two_ranks: list[PagedModel]) -> None:
    first, _ = at_once(lambda model: engine_of(model=model, cuda_graphs="start"), two_ranks)
    assert first.background_work is not None
    assert first.background_work() is None, "alone"
