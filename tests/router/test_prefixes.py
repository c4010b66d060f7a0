"""Where requests go: to who has their prefix, but for load; and what that is worth, over four services."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import pytest
from covering import few_of
from fleet import BOUNDS, Fleet, Front
from simulation import VOCAB, World
from slipstream.actors.router import admission
from slipstream.actors.router.choice import MAX_ABOVE_MEAN, MAX_LOOKED_AT, SLACK, choose
from slipstream.actors.router.prefixes import Holders, Prefixes
from slipstream.actors.router.prompt_blocks import (
    BLOCK_BYTES,
    MAX_BLOCKS,
    blocks_of,
    hash_blocks,
    size_and_bytes,
)
from slipstream.actors.router.replica import Replica
from slipstream.protocol.client.questions import Question
from slipstream.protocol.messages import Delta, Generate, Stats
from slipstream.protocol.sampling import SamplingParams


def hashes_of(request: Generate) -> list[bytes]:
    return hash_blocks(size_and_bytes(request)[1], request.params.cache_salt, request.params.adapter)


def replicas(count: int, loads: Iterable[int] = ()) -> list[Replica]:
    holders: Holders = {}
    found = [Replica(f"ipc:///{number}", "small", BOUNDS, holders) for number in range(count)]
    for replica, load in zip(found, loads, strict=False):
        replica.carry(load, 0)
    return found


# --- hashes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ({"prompt": list(range(40))}, {"prompt": [*range(33), 7]}, 2),
        ({"prompt": "x" * 200}, {"prompt": "x" * 150 + "y"}, 2),
        ({"prompt": "x" * 63}, {"prompt": "x" * 63}, 0),
        ({"prompt": "x" * 200}, {"prompt": "y" + "x" * 200}, 0),
        (
            {"prompt": "x" * 200, "params": SamplingParams(cache_salt="a")},
            {"prompt": "x" * 200, "params": SamplingParams(cache_salt="b")},
            0,
        ),
        (
            {"prompt": "x" * 200, "params": SamplingParams(cache_salt="a")},
            {"prompt": "x" * 200, "params": SamplingParams(adapter="a")},
            0,
        ),
    ],
    ids=["token ids", "text", "less than a block", "another prefix", "another salt", "an adapter"],
)
def test_requests_share_the_blocks_of_their_common_beginning(
    first: dict[str, object], second: dict[str, object], shared: int
) -> None:
    one, other = (hashes_of(Generate(id="a", **asked)) for asked in (first, second))  # type: ignore[arg-type]
    same = [left == right for left, right in zip(one, other, strict=False)]
    assert same.count(True) == shared
    assert same == sorted(same, reverse=True)


def test_the_next_question_of_a_conversation_begins_with_all_that_was_before_it() -> None:
    talk = [{"role": "user", "content": "word " * 50}]
    more = [*talk, {"role": "assistant", "content": "yes " * 50}, {"role": "user", "content": "and?"}]
    one, other = (
        hashes_of(Generate(id="a", messages=messages, tools=[{"name": "f"}])) for messages in (talk, more)
    )
    assert len(one) > 3
    assert other[: len(one)] == one
    assert hashes_of(Generate(id="a", messages=talk))[0] != one[0]


def test_long_beginnings_share_ever_larger_parts() -> None:
    one, other = (hashes_of(Generate(id="a", prompt=[7] * 16 * 150 + [end])) for end in (1, 2))
    assert one == other
    assert blocks_of(len(one)) == 144
    assert blocks_of(0) == 0
    shorter = hashes_of(Generate(id="a", prompt=[7] * 16 * 70))
    assert one[: len(shorter)] == shorter
    assert blocks_of(len(shorter)) == 64


def test_of_a_long_prompt_the_beginning_is_looked_at() -> None:
    size, prefix = size_and_bytes(Generate(id="a", prompt="é" * 1_000_000))
    assert size == 1_000_000
    assert len(prefix) == BLOCK_BYTES * MAX_BLOCKS
    assert size_and_bytes(Generate(id="a", prompt=[2**40] * 100)) == (400, b"")


def test_what_is_remembered_is_bounded_and_the_ends_of_what_is_oldest_go_first() -> None:
    prefixes = Prefixes()
    old, new = ([f"{name}{number}".encode() for number in range(10)] for name in ("old", "new"))
    prefixes.note(old, 15)
    prefixes.note(new, 15)
    assert len(prefixes.known) == 15
    assert (prefixes.matched(old), prefixes.matched(new)) == (5, 10)


# --- choice ---------------------------------------------------------------------------------------


def test_a_request_goes_to_who_has_most_of_its_beginning() -> None:
    one, two, three = replicas(3)
    hashes = [b"a", b"b", b"c"]
    one.prefixes.note(hashes[:1], 100)
    two.prefixes.note(hashes, 100)
    assert choose([one, two, three], hashes) is two


def test_a_service_far_above_the_mean_gets_nothing_for_its_caches_sake() -> None:
    others = 2
    load = SLACK
    while load <= (load + others) / 3 * (1 + MAX_ABOVE_MEAN) + SLACK:
        busy, *rest = replicas(3, [load, 1, 1])
        busy.prefixes.note([b"a"], 100)
        assert choose([busy, *rest], [b"a"]) is busy
        load += 1
    busy, *rest = replicas(3, [load, 1, 1])
    busy.prefixes.note([b"a"], 100)
    assert choose([busy, *rest], [b"a"]) is not busy


def test_a_service_at_which_requests_wait_gets_nothing_for_its_caches_sake_until_it_has_room() -> None:
    crowded, other = replicas(2, [8, 6])
    crowded.prefixes.note([b"a"], 100)
    for running, waiting, chosen in (
        (8, 0, crowded),
        (8, 2, other),
        (8, 0, other),
        (7, 0, other),
        (5, 0, crowded),
    ):
        crowded.counters = {"num_requests_running": float(running), "num_requests_waiting": float(waiting)}
        crowded.learn_capacity()
        assert choose([crowded, other], [b"a"]) is chosen, (running, waiting)
    other.capacity = crowded.capacity = 1.0
    assert choose([crowded, other], [b"a"]) is other  # where all are, the one with least to do


def test_a_beginning_that_many_want_goes_where_less_is_before_it_than_it_takes_to_compute() -> None:
    hashes = [f"{number}".encode() for number in range(10)]
    popular, other = replicas(2)
    popular.prefixes.note(hashes, 100)
    for before, chosen in ((0, popular), (9, popular), (10, popular), (11, other)):
        popular.carry(0, before - popular.uncomputed)
        assert choose([popular, other], hashes) is chosen, before
    other.carry(0, 2)
    assert choose([popular, other], hashes) is popular


def test_a_service_has_as_much_room_as_it_says_before_anything_waits_there() -> None:
    full, other = replicas(2, [8, 7])
    full.prefixes.note([b"a"], 100)
    full.question = question = Question(Stats, None)
    question.answer = Stats(counters={"max_num_seqs": 8.0, "num_requests_running": 3.0})
    full.take_counters()
    assert choose([full, other], [b"a"]) is other
    full.carry(-1, 0)
    assert choose([full, other], [b"a"]) is full


def test_of_very_many_services_a_part_is_looked_at_and_the_one_that_has_the_beginning() -> None:
    many = replicas(10 * MAX_LOOKED_AT)
    many[0].prefixes.note([b"a", b"b"], 100)
    for replica in many[1:]:
        replica.prefixes.note([b"a"], 100)
    assert choose(many, [b"a", b"b"]) is many[0]
    used: Counter[str] = Counter()
    for number in range(20 * len(many)):
        found = choose(many, [b"new", number.to_bytes(4)])
        found.carry(1, 0)
        used[found.endpoint] += 1
    assert len(used) == len(many)
    assert max(used.values()) - min(used.values()) <= SLACK


def test_who_holds_what_is_forgotten_with_it() -> None:
    one, other = replicas(2)
    holders = one.prefixes.holders
    for replica in (one, other):
        replica.prefixes.note([b"a", b"b"], 100)
    assert holders == {b"a": (one, other), b"b": (one, other)}
    one.prefixes.note([b"c"], 2)
    assert holders == {b"a": (one, other), b"b": (other,), b"c": (one,)}
    one.on_lost()
    other.on_lost()
    assert holders == {}


def test_what_nobody_has_goes_to_who_has_least_to_do_and_several_routers_agree() -> None:
    assert choose(found := replicas(3, [2, 1, 2]), [b"a"]) is found[1]
    chosen = {choose(replicas(3), [first]).endpoint for first in (b"a", b"a", b"a")}
    assert len(chosen) == 1
    spread = {choose(replicas(3), [bytes([first])]).endpoint for first in range(50)}
    assert len(spread) == 3


def test_a_service_that_does_not_find_what_it_was_sent_is_chosen_by_load_until_it_does() -> None:
    liar, honest = replicas(2, [1, 0])
    liar.prefixes.note([b"a"], 100)
    for _ in range(50):
        liar.prefixes.learn(100.0, 0, 200)
    assert choose([liar, honest], [b"a"]) is honest
    for _ in range(50):
        liar.prefixes.learn(100.0, 200, 200)  # nor does it count for more than was expected
    assert liar.prefixes.found <= 1.0
    assert choose([liar, honest], [b"a"]) is liar
    for _ in range(50):
        liar.prefixes.learn(100.0, 10**9, 200)  # more than the prompt has
    assert choose([liar, honest], [b"a"]) is honest


# --- what it is worth -----------------------------------------------------------------------------


class Measured(Front):
    """A front that knows when first tokens came and what was cached."""

    def ask(self, client: bytes, id: str, prompt: list[int], params: SamplingParams) -> None:
        self.first = getattr(self, "first", {})
        self.cached = getattr(self, "cached", [])
        super().ask(client, id, prompt, params)

    def take(self, key: tuple[bytes, str], delta: Delta) -> None:
        self.first.setdefault(key, self.now - self.asked_at[key])
        if delta.usage is not None:
            self.cached.append((delta.usage.cached_tokens, delta.usage.prompt_tokens))
        super().take(key, delta)

    def share(self) -> float:
        """Of prompt tokens that were in the cache."""
        return sum(cached for cached, _ in self.cached) / sum(prompt for _, prompt in self.cached)

    def p99(self) -> float:
        """Of the seconds until the first token."""
        return sorted(self.first.values())[int(0.99 * len(self.first))]


def fleet_of(services: int, room: int) -> tuple[Fleet, Measured]:
    """Services that each have ``room`` times the cache and the slots of one of four."""
    fleet = Fleet(1, services=services, front=Measured)
    for number, world in enumerate(fleet.services):
        world = fleet.services[number] = World(number, slots=32 * room, blocks=600 * room, budget=32)
        world.on_client = lambda address, frame, number=number: fleet.answer(number, address, frame)
    front = fleet.fronts[0]
    assert isinstance(front, Measured)
    front.connect(b"ann")
    fleet.run(lambda: all(session.state == "ready" for session in front.actors["router"].sessions.values()))  # type: ignore[union-attr]
    return fleet, front


def shared_prefixes(seed: int) -> Measured:
    """24 prefixes of 128 tokens, each with 8 questions, in any order."""
    fleet, front = fleet_of(4, 1)
    rng = random.Random(seed)
    prefixes = [[rng.randrange(VOCAB) for _ in range(128)] for _ in range(24)]
    jobs = [(number, question) for number in range(24) for question in range(8)]
    rng.shuffle(jobs)
    for order, (number, question) in enumerate(jobs):
        prompt = [*prefixes[number], question]
        params = SamplingParams(max_tokens=16, ignore_eos=True, seed=question)
        front.at(0.1 + 0.002 * order, lambda i=str(order), p=prompt, s=params: front.ask(b"ann", i, p, s))
    fleet.run(lambda: len(front.ends) == len(jobs))
    return front


@pytest.mark.parametrize("seed", few_of(range(4), 0))
def test_of_shared_beginnings_nearly_all_is_found_and_first_tokens_come_sooner_than_by_load_alone(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    routed = shared_prefixes(seed)
    monkeypatch.setattr(admission, "hash_blocks", lambda prefix, salt, adapter: [])
    least_load = shared_prefixes(seed)
    assert routed.share() >= 0.85 * 128 / 129
    assert least_load.share() < 0.7
    assert routed.p99() <= least_load.p99()


def conversations(services: int, seed: int) -> Measured:
    """24 conversations of 8 turns at once; each question comes when the answer before it is there."""
    fleet, front = fleet_of(services, 4 // services)
    rng = random.Random(seed)
    turns = 0

    def go_on(talk: list[int], turn: int, number: int) -> None:
        nonlocal turns
        turns += 1
        talk = [*talk, *(rng.randrange(VOCAB) for _ in range(10))]
        front.ask(
            b"ann", f"{number}.{turn}", talk, SamplingParams(max_tokens=8, ignore_eos=True, seed=number)
        )
        key = (b"ann", f"{number}.{turn}")

        def look() -> None:
            if key not in front.ends:
                front.after(0.001, look)
            elif turn < 7:
                front.after(0.005, lambda: go_on([*talk, *front.answers[key][0].got], turn + 1, number))

        look()

    for number in range(24):
        front.at(0.1 + rng.random() * 0.05, lambda n=number: go_on([n] * 16, 0, n))
    fleet.run(lambda: turns == 24 * 8 and len(front.ends) == turns)
    return front


@pytest.mark.parametrize("seed", few_of(range(4), 0))
def test_conversations_over_four_services_find_what_one_big_service_would(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    routed = conversations(4, seed)
    assert routed.share() >= 0.9 * conversations(1, seed).share() > 0.5
    monkeypatch.setattr(admission, "hash_blocks", lambda prefix, salt, adapter: [])
    assert routed.p99() <= conversations(4, seed).p99()
