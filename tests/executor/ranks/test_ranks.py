"""Two ranks give the tokens that one gives: the real scheduler, pipeline and runner, and gloo between threads."""

from __future__ import annotations

import gc
import random
import threading
from collections import Counter
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rank_threads import at_once, groups
from ranks import LENGTH, Service
from slipstream.actors.executor.background_work import CATCHING_UP_SHARE
from slipstream.actors.executor.model.fused.fuse import fuse
from slipstream.actors.executor.model.loading.load import from_config
from slipstream.actors.executor.model.paged_model import PagedModel
from slipstream.actors.executor.ranks import rendezvous
from slipstream.actors.executor.ranks.follower import Follower
from slipstream.actors.executor.ranks.group import RankGroup, RankLost
from slipstream.actors.executor.ranks.leader import Leader
from slipstream.actors.executor.ranks.sampler import FollowingSampler
from slipstream.actors.executor.ranks.shard_loading import divide
from slipstream.protocol.errors import SlipstreamError
from slipstream.protocol.events import Completed, HandedOn, PeerUp
from slipstream.protocol.internal import Capacity, CaptureNext, ClearBatch, Plan
from slipstream.protocol.sampling import SamplingParams
from tiny_models import VOCAB_SIZE, make_config
from torch import Tensor

CPU = torch.device("cpu")
FEW_BLOCKS = 30
"""Not enough for all sequences that run."""

torch.set_num_threads(1)


def requests(schedule: int = 5) -> list[tuple[list[int], SamplingParams]]:
    """Prompts that are computed in pieces, that share prefixes, and every wish that changes the sampling."""
    rng = random.Random(schedule)
    shared = [rng.randrange(VOCAB_SIZE - 2) for _ in range(20)]
    wishes = [
        {"temperature": 0.0},
        {"temperature": 0.0, "regex": "[a-f]{2,9}(-[0-9]+){1,3}"},
        {"temperature": 0.8},
        {"temperature": 1.0, "top_p": 0.9, "top_k": 20},
        {"temperature": 0.9, "repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2},
        {"temperature": 0.7, "logprobs": 3, "prompt_logprobs": 2},
        {"temperature": 1.0, "min_p": 0.02, "logit_bias": {5: 4.0, 9: -5.0}, "min_tokens": 6},
        {"temperature": 0.0, "choice": ["yes", "no", "yes, but"]},
    ]
    made = []
    for seed in range(16):
        prompt = [rng.randrange(VOCAB_SIZE - 2) for _ in range(rng.randrange(1, 40))]
        prompt = shared + prompt[:9] if rng.random() < 0.4 else prompt
        most = rng.randrange(4, 30)
        ignore = rng.random() < 0.5
        made.append(
            (
                prompt,
                SamplingParams(**{"max_tokens": most, "seed": seed, "ignore_eos": ignore} | wishes[seed % 8]),
            )
        )  # type: ignore[arg-type]
    return made


def answers(service: Service, schedule: int = 5) -> dict[int, list[int]]:
    rng = random.Random(schedule - 4)
    for request, (prompt, params) in enumerate(requests(schedule)):
        service.ask(request, prompt, params)
        for _ in range(rng.randrange(4)):
            if service.executor.pipeline.under_way:
                service.wait()
    service.finish()
    return service.tokens


def whole(family: str) -> PagedModel:
    changes = {"moe_intermediate_size": 32} if family == "qwen3_moe" else {}  # which four ranks can divide
    return from_config(make_config(family, **changes), CPU, torch.float32)


def one_rank(family: str, schedule: int = 5) -> dict[int, list[int]]:
    model = whole(family)
    fuse(model)
    return answers(Service([model], blocks=5 * LENGTH), schedule)


def two_ranks(family: str) -> list[PagedModel]:
    return divided(family, 2)


def divided(family: str, size: int) -> list[PagedModel]:
    models = [whole(family) for _ in range(size)]
    at_once(divide, models, groups(size))
    return models


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe", "gemma3_text", "gpt_oss"])
def test_two_ranks_give_the_tokens_of_one_and_know_the_same(family: str) -> None:
    expected = one_rank(family)
    assert sum(map(len, expected.values())) > 150
    service = Service(two_ranks(family), blocks=FEW_BLOCKS)
    assert answers(service) == expected
    counters = service.scheduler.counters
    assert counters["num_preemptions"] > 0
    assert counters["num_block_copies"] + counters["prefix_cache_hits"] > 0


def test_four_ranks_give_the_tokens_of_one_whatever_is_asked_when(soak: bool) -> None:
    """By turns each of four families, at each depth, with graphs and without."""
    for schedule in range(48 if soak else 1):
        family = ("gpt_oss", "llama", "qwen3", "qwen3_moe")[schedule % 4]
        depth, graphs = 1 + schedule // 4 % 3, ("none", "start", "meanwhile")[schedule // 12 % 3]
        expected = one_rank(family, schedule)
        service = Service(divided(family, 4), depth=depth, blocks=FEW_BLOCKS, graphs=graphs)
        assert answers(service, schedule) == expected, (schedule, family, depth, graphs)


def test_each_rank_keeps_the_states_that_nothing_divides() -> None:
    expected = one_rank("qwen3_next")
    service = Service(two_ranks("qwen3_next"), blocks=FEW_BLOCKS)
    assert answers(service) == expected
    assert service.scheduler.counters["num_preemptions"] > 0


@pytest.mark.covering(1)
@pytest.mark.parametrize(
    ("depth", "graphs"),
    [
        (1, "none"),
        (3, "none"),
        (1, "start"),
        (2, "start"),
        (3, "start"),
        (2, "lazy"),
        (1, "meanwhile"),
        (3, "meanwhile"),
    ],
)
def test_at_any_depth_with_graphs_and_without(depth: int, graphs: str) -> None:
    expected = one_rank("llama")
    service = Service(two_ranks("llama"), depth=depth, blocks=FEW_BLOCKS, graphs=graphs)
    first, second = service.ranks
    while graphs == "lazy" and first.graphed is not None and len(first.graphed.queue.common) > 3:
        service.wake()  # nothing has been asked yet
    assert answers(service) == expected
    if graphs == "none":
        return
    assert first.replays.replays[0] > (20 if graphs == "meanwhile" else 100)
    assert second.replays.replays == first.replays.replays
    assert first.graphed is not None
    assert second.graphed is not None
    assert list(first.graphed.forward_graphs) == list(second.graphed.forward_graphs), "captured in one order"
    assert list(first.graphed.sampling_graphs) == list(second.graphed.sampling_graphs)


def test_all_ranks_do_the_same_together_in_one_order_on_their_compute_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two that differ would wait for each other for ever; beside the compute stream nothing would order them."""
    done: dict[int, list[tuple[str, torch.Size, torch.dtype]]] = {0: [], 1: []}
    places: set[str] = set()

    def record(name: str) -> None:
        real = getattr(RankGroup, name)

        def together(group: RankGroup, tensor: Tensor, *given: int) -> Tensor:
            done[group.rank].append((name, tensor.shape, tensor.dtype))
            places.add(threading.current_thread().name)
            return real(group, tensor, *given)

        monkeypatch.setattr(RankGroup, name, together)

    service = Service(two_ranks("llama"), depth=3, blocks=FEW_BLOCKS)
    for name in ("sum", "gather", "broadcast"):
        record(name)
    answers(service)
    assert done[0] == done[1]
    steps = int(service.scheduler.counters["steps"])
    kinds = Counter(name for name, _, _ in done[0])
    ends = sum(name == "gather" and not shape.numel() for name, shape, _ in done[0])
    assert ends, "a step without logits ends with the keys and values of its last layer"
    sums = 2 * 2 * kinds["gather"] - 2 * ends
    assert kinds["sum"] == sums, "after attention and feed-forward of each of two layers"
    assert steps - 30 <= kinds["broadcast"] <= kinds["gather"] == steps, (
        "once a step, unless nothing is sampled"
    )
    assert places == {service.ranks[0].device.compute.name}


def test_a_rank_that_samples_other_tokens_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above compare would show it, though no other answer is given."""
    real = FollowingSampler.sample

    def sample(self: FollowingSampler, logits: Tensor, slots: Tensor, *rest: Any) -> Tensor:
        return (real(self, logits, slots, *rest) + 1) % VOCAB_SIZE

    monkeypatch.setattr(FollowingSampler, "sample", sample)
    service = Service(two_ranks("llama"), blocks=FEW_BLOCKS)
    with pytest.raises(AssertionError, match="tokens"):
        answers(service)


def test_a_rank_that_is_gone_is_named_as_the_reason() -> None:
    gone, left = groups(2)
    del gone
    gc.collect()
    with pytest.raises(RankLost, match="another rank has ended") as lost:
        left.sum(torch.ones(3))
    assert lost.value.of_another


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("unsupported device type"),
        torch.distributed.DistBackendError(
            "NCCL error in: ProcessGroupNCCL.cpp:3370, unhandled cuda error (run with NCCL_DEBUG=INFO for details)\n"
            "Last error:\nCuda failure 700 'an illegal memory access was encountered'"
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_rank_that_fails_by_itself_blames_no_other(error: RuntimeError) -> None:
    def allreduce(*given: Any) -> None:
        raise error

    group = RankGroup(0, 2, SimpleNamespace(allreduce=allreduce))
    with pytest.raises(type(error)) as failed:
        group.sum(torch.ones(3))
    assert failed.value is error


def test_a_rank_that_nccl_does_not_reach_is_lost() -> None:
    def allreduce(*given: Any) -> None:
        raise torch.distributed.DistBackendError("NCCL error: remote process exited")

    with pytest.raises(RankLost, match="another rank has ended: NCCL error"):
        RankGroup(0, 2, SimpleNamespace(allreduce=allreduce)).sum(torch.ones(3))


def test_the_rank_that_never_comes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "MEET_WITHIN", timedelta(seconds=0.2))
    with pytest.raises(SlipstreamError, match=r"rank 1 \(executor\.1\) has not come within 0\.2 s"):
        rendezvous.meet(0, 2, str(tmp_path / "here"), CPU)


# --- what the actors do, by themselves --------------------------------------------------------------


class OneStep:
    """A pipeline of a single slot, which is busy until it is told."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.busy = False
        self.masks_due = self.awaiting_masks = None
        self.device = SimpleNamespace(completions_fd=None, array=lambda staging: staging)

    @property
    def idle(self) -> bool:
        return not self.busy

    free = idle

    def acquire(self) -> SimpleNamespace:
        self.busy = True
        return SimpleNamespace(staging=None)

    def launch(self, slot: Any, number: int, step: Any) -> None:
        self.done.append(f"step {number}")

    def poll_completed(self) -> list[Any]:
        self.busy = False
        return []


def follower() -> tuple[Follower, OneStep]:
    pipeline = OneStep()
    step = SimpleNamespace(layout=SimpleNamespace(tokens=1), masked=())
    batch = SimpleNamespace(stage=lambda plan, staging: step, clear=lambda: pipeline.done.append("forget"))
    found = Follower("executor.1", 1, pipeline, batch, {}, lambda: pipeline.done.append("capture") is None)  # type: ignore[arg-type]
    return found, pipeline


def test_a_follower_does_what_comes_early_later_and_in_its_order() -> None:
    actor, pipeline = follower()
    for message in (ClearBatch(), Plan(0), Plan(1), CaptureNext(), ClearBatch(), Plan(2)):
        assert actor.receive("executor", message, 0.0) == []
    assert pipeline.done == ["forget", "step 0"]
    assert actor.working
    actor.receive("device", Completed(), 0.0)
    assert pipeline.done == ["forget", "step 0", "step 1"]
    actor.receive("device", Completed(), 0.0)
    assert pipeline.done[3:] == ["capture", "forget", "step 2"]
    actor.receive("device", Completed(), 0.0)
    assert not actor.working


def plan(actor: Leader, step: int, now: float) -> None:
    """Give the actor a plan, and then what it sends to itself."""
    [*told, to_itself] = actor.receive("scheduler", Plan(step), now)
    assert to_itself == (actor.name, HandedOn())
    assert [(to, type(message)) for to, message in told] == [("a", Plan), ("b", Plan)]
    assert f"step {step}" not in actor.pipeline.done, "before the others have it"  # type: ignore[attr-defined]
    assert actor.receive(*to_itself, now) == []
    assert actor.pipeline.done[-1] == f"step {step}"  # type: ignore[attr-defined]


def leader(captures: list[str], *, catching_up: bool = False) -> Leader:
    step = SimpleNamespace(layout=SimpleNamespace(tokens=1), masked=())
    batch = SimpleNamespace(stage=lambda plan, staging: step, clear=lambda: None)
    return Leader(
        OneStep(),
        batch,
        Capacity(9, 4),
        {},
        lambda: captures.append("capture") or 0.5,
        catching_up=catching_up,
        followers=("a", "b"),  # type: ignore[arg-type]
    )


def test_the_scheduler_hears_of_the_executor_when_all_its_ranks_are_there() -> None:
    actor = leader([])
    assert actor.receive("scheduler", PeerUp("scheduler", 1), 0.0) == []
    assert actor.receive("a", PeerUp("a", 2), 0.0) == []
    told = actor.receive("b", PeerUp("b", 3), 0.0)
    assert [(to, type(message)) for to, message in told] == [
        ("a", ClearBatch),
        ("b", ClearBatch),
        ("scheduler", Capacity),
    ]
    again = actor.receive("scheduler", PeerUp("scheduler", 4), 0.0)
    assert [type(message) for _, message in again] == [ClearBatch, ClearBatch, Capacity]


def test_what_not_all_ranks_would_hear_is_not_sent() -> None:
    actor = leader([])
    actor.receive("a", PeerUp("a", 2), 0.0)
    with pytest.raises(RuntimeError, match="Plan is for all ranks, and b cannot hear it yet"):
        actor.receive("scheduler", Plan(0), 0.0)


def test_every_rank_captures_at_the_same_place_among_the_plans() -> None:
    captures: list[str] = []
    actor = leader(captures)
    assert actor.wake(0.0) == [], "nobody would hear it"
    assert actor.receive("a", PeerUp("a", 2), 0.0) == []
    assert actor.wake(0.0) == []
    assert actor.receive("b", PeerUp("b", 3), 0.0) == []
    assert actor.wake_at == 0.0
    told = actor.wake(0.0)
    assert [(to, type(message)) for to, message in told] == [("a", CaptureNext), ("b", CaptureNext)]
    assert captures == [], "the others have to hear of it first"
    plan(actor, 0, 0.0)
    assert captures == ["capture"]


def test_after_a_restart_ranks_capture_between_steps_too_in_a_share_of_the_time() -> None:
    captures: list[str] = []
    actor = leader(captures, catching_up=True)
    for name in ("a", "b"):
        actor.receive(name, PeerUp(name, 2), 0.0)
    plan(actor, 0, 0.0)
    assert not actor.pipeline.idle
    assert [type(message) for _, message in actor.wake(1.0)] == [CaptureNext, CaptureNext]
    assert captures == []
    actor.receive("device", Completed(), 1.0)
    assert actor.wake_at == 1.0, "the others wait in what they have begun"
    plan(actor, 1, 1.0)
    assert captures == ["capture"], "before the next step"
    actor.receive("device", Completed(), 1.1)
    plan(actor, 2, 1.15)
    assert actor.wake(1.8) == [], "half a second is three fifths of what passes until the next"
    assert [type(message) for _, message in actor.wake(1.0 + 0.5 / CATCHING_UP_SHARE)] == [
        CaptureNext,
        CaptureNext,
    ]
