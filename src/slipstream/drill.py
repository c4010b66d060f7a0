"""``slipstream drill``: kill the actors of a service of your own, and compare every token with what it must be.

Streams are kept open, each asking again and again for an answer that is known; actors are hit at random
instants. Where tokens that are computed again may come out otherwise (in all dtypes but float32, unless the service
is batch-invariant), an answer is checked instead against the model: it has the length that was asked for, and each of
its tokens is one that may follow what stands before it. **Recovery** is what a user sees of it: for every stream that
was open, the longest time without a token, counted from the kill at the earliest, until the service is whole again and
the stream goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

from .actors.executor.devices.kinds import KINDS
from .protocol.actors import ACTORS
from .protocol.client.asynchronous import AsyncClient
from .protocol.errors import ServiceUnavailable, SlipstreamError
from .protocol.messages import Delta
from .protocol.sampling import SamplingParams
from .runtime.supervision.restarts import INTENSITY
from .sidecar import Sidecar

FAULTS = ("kill", "twice", "stop", "restart")
"""SIGKILL; SIGKILL and another during the recovery; SIGSTOP, and SIGCONT after ``STOPPED_S``; a planned restart."""

STOPPED_S = 5.0

MOST_PAUSE_S = 0.3
"""Between a recovery and the next fault, at most; and between the two of ``twice``."""

PATIENCE_S = 60.0
"""A stream without a token for this long counts as unfinished."""

STREAMS_PER_CLIENT = 16


@dataclass(frozen=True)
class Load:
    """What the streams ask for, by device."""

    answer_tokens: int
    options: dict[str, Any]
    """Of ``Sidecar``."""


TOP_K = 8
"""Of the sampled answers that are checked against the model."""

ROUNDING = 0.5
"""By how much a logprob may differ where the same tokens are computed otherwise, in bfloat16."""

DEVICES = tuple(KINDS)


def load_of(device: str) -> Load:
    if device == "emulated":
        return Load(300, {"device": device, "emulated_step_ms": 10.0})
    return Load(60, {"device": device})


@dataclass
class Case:
    """A request whose answer is known."""

    prompt: list[int]
    params: SamplingParams
    tokens: list[int] = field(default_factory=list)
    text: str = ""


def make_cases(count: int, device: str, top_k: int = 0) -> list[Case]:
    """All different; of a model's every second one is greedy, and the others take one of the ``top_k`` best tokens."""
    rng = random.Random(0)
    most = load_of(device).answer_tokens
    cases: list[Case] = []
    for number in range(count):
        prompt = [rng.randrange(1, 2000) for _ in range(rng.randrange(4, 40))]
        temperature = 0.0 if device != "emulated" and number % 2 else 1.0
        params = SamplingParams(
            max_tokens=most,
            ignore_eos=True,
            seed=number,
            temperature=temperature,
            top_k=top_k if temperature else 0,
        )
        cases.append(Case(prompt, params))
    return cases


class Answer:
    """One answer as it comes."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.tokens: list[int] = []
        self.texts: list[str] = []
        self.over = self.finished = False
        self.heard_at = time.monotonic()
        self.longest_s = 0.0
        """Without a token, since the last fault."""

    def take(self, delta: Delta) -> None:
        now = time.monotonic()
        self.tokens += delta.token_ids
        self.texts.append(delta.text)
        self.longest_s = max(self.longest_s, now - self.heard_at)
        self.heard_at = now

    def hit(self, now: float) -> None:
        self.heard_at, self.longest_s = now, 0.0


class Drill:
    """One drill: its services, its streams and what it counts."""

    def __init__(
        self,
        targets: tuple[str, ...],
        rounds: int,
        streams: int,
        device: str = "emulated",
        dtype: str = "float32",
        fault: str = "kill",
        seed: int = 0,
        say: Callable[[str], None] = lambda text: None,
        *,
        batch_invariant: bool = False,
    ) -> None:
        self.targets = targets
        self.rounds = rounds
        self.device = device
        self.fault = fault
        self.rng = random.Random(seed)
        self.say = say
        self.options: dict[str, Any] = load_of(device).options | {"tensor_parallel_size": ranks_for(targets)}
        if device != "emulated":
            self.options |= {"dtype": dtype, "batch_invariant": batch_invariant}
        self.exact = device == "emulated" or dtype == "float32" or batch_invariant
        """The same request has the same answer, whenever and however often its tokens are computed."""
        self.cases = make_cases(streams, device, 0 if self.exact else TOP_K)
        self.answers: list[Answer] = []
        """Still to be checked against the model."""
        self.open: dict[int, Answer] = {}
        """The present answer of each stream, by its number."""
        self.stopping = False
        self.services = 0
        self.kills: Counter[str] = Counter()
        self.deaths: Counter[str] = Counter()
        """Of each actor of the present service."""
        self.recovery_s: defaultdict[str, list[float]] = defaultdict(list)
        self.tokens = self.lost = self.duplicated = self.changed = self.unfinished = 0
        self.errors: list[str] = []

    async def run(self) -> dict[str, Any]:
        plan = [
            actor for _ in range(self.rounds) for actor in self.rng.sample(self.targets, len(self.targets))
        ]
        while plan:
            plan = await self.run_service(plan)
        return self.result()

    async def run_service(self, plan: list[str]) -> list[str]:
        """Carry out as much of the plan as one service may bear; returns the rest of it."""
        self.services += 1
        self.deaths.clear()
        self.stopping = False
        sidecar = await asyncio.to_thread(lambda: Sidecar(max_num_seqs=len(self.cases), **self.options))
        clients = self.clients_of(sidecar)
        try:
            if self.exact and self.services == 1:
                await self.learn(clients)
            streams = [
                asyncio.create_task(self.keep_asking(number, clients[number % len(clients)]))
                for number in range(len(self.cases))
            ]
            while plan and self.bears(plan[0]):
                await asyncio.sleep(self.rng.random() * MOST_PAUSE_S)
                await self.strike(sidecar, plan[0])
                plan = plan[1:]
            self.stopping = True
            await asyncio.gather(*streams)
            await asyncio.gather(*(self.check(answer, clients[0]) for answer in self.answers))
            self.answers.clear()
        finally:
            for client in clients:
                await client.close()
            await asyncio.to_thread(sidecar.stop)
        return plan

    def clients_of(self, sidecar: Sidecar) -> list[AsyncClient]:
        """As many as the streams are spread over."""
        return [self.client_of(sidecar) for _ in range(-(-len(self.cases) // STREAMS_PER_CLIENT))]

    def client_of(self, sidecar: Sidecar) -> AsyncClient:
        return sidecar.async_client(timeout_s=PATIENCE_S)

    def bears(self, actor: str) -> bool:
        """Whether the service still restarts the actor: it gives one up that dies again and again."""
        most = {dies_as(actor): 1} if self.fault != "twice" else dict.fromkeys(ACTORS, 1)
        return all(self.deaths[name] + extra <= INTENSITY for name, extra in most.items())

    # --- streams ------------------------------------------------------------------------------

    async def learn(self, clients: list[AsyncClient]) -> None:
        """Let each case be answered once while nothing fails; the emulated device's function is known besides."""

        async def ask(case: Case, client: AsyncClient) -> None:
            texts: list[str] = []
            async for delta in client.generate(case.prompt, case.params):
                case.tokens += delta.token_ids
                texts.append(delta.text)
            case.text = "".join(texts)

        await asyncio.gather(
            *(ask(case, clients[number % len(clients)]) for number, case in enumerate(self.cases))
        )
        if self.device == "emulated":
            vocab_size = (await clients[0].connect()).limits.vocab_size
            for case in self.cases:
                if case.tokens != known_answer(case, vocab_size):
                    raise SlipstreamError("the service answers wrongly even though nothing fails")

    async def keep_asking(self, number: int, client: AsyncClient) -> None:
        case = self.cases[number]
        while not self.stopping:
            answer = self.open[number] = Answer(case)
            try:
                await asyncio.wait_for(self.read(answer, client), PATIENCE_S)
                answer.finished = True
            except (SlipstreamError, TimeoutError) as error:
                self.unfinished += 1
                self.errors.append(f"{type(error).__name__}: {error}")
            answer.over = True
            if self.exact:
                self.compare(answer)
            else:
                self.answers.append(answer)

    async def read(self, answer: Answer, client: AsyncClient) -> None:
        async for delta in client.generate(answer.case.prompt, answer.case.params):
            answer.take(delta)

    def compare(self, answer: Answer) -> None:
        """Compare what has come with what it must be; an unfinished answer as far as it goes."""
        case, got = answer.case, answer.tokens
        self.tokens += len(got)
        expected = case.tokens if answer.finished else case.tokens[: len(got)]
        for kind, i, j, k, m in SequenceMatcher(None, expected, got, autojunk=False).get_opcodes():
            self.lost += j - i if kind == "delete" else 0
            self.duplicated += m - k if kind == "insert" else 0
            self.changed += max(j - i, m - k) if kind == "replace" else 0
        text = "".join(answer.texts)
        if got == expected and (text != case.text if answer.finished else not case.text.startswith(text)):
            self.changed += 1

    async def check(self, answer: Answer, client: AsyncClient) -> None:
        """Let the model read an answer, and count the tokens that it would not have given there."""
        case, got = answer.case, answer.tokens
        self.tokens += len(got)
        asked = case.params.max_tokens or 0
        self.duplicated += max(0, len(got) - asked)
        self.lost += max(0, asked - len(got)) if answer.finished else 0
        if not got:
            return
        choices = case.params.top_k if case.params.temperature else 1
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=choices)
        read = await client.complete([*case.prompt, *got], params)
        rows = (read.prompt_logprobs or [])[len(case.prompt) :]
        self.changed += sum(
            not may_follow(token, row or {}, choices) for token, row in zip(got, rows, strict=True)
        )

    # --- faults -------------------------------------------------------------------------------

    async def strike(self, sidecar: Sidecar, actor: str) -> None:
        """One fault, and the wait until every stream that was open goes on or is over."""
        pids = await asyncio.to_thread(lambda: sidecar.pids)
        hit = {name: pids[name] for name in (actor,)}
        struck = [answer for answer in self.open.values() if not answer.over]
        begun = time.monotonic()
        for answer in struck:
            answer.hit(begun)
        self.kills[actor] += 1
        if self.fault == "stop":
            os.kill(pids[actor], signal.SIGSTOP)
            await asyncio.sleep(STOPPED_S)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[actor], signal.SIGCONT)
        elif self.fault == "restart":
            await asyncio.to_thread(sidecar.restart, actor)
        else:
            os.kill(pids[actor], signal.SIGKILL)
            self.deaths[dies_as(actor)] += 1
        if self.fault == "twice":
            await asyncio.sleep(self.rng.random() * MOST_PAUSE_S)
            second = self.rng.choice(ACTORS)
            pid = (await asyncio.to_thread(lambda: sidecar.pids))[second]
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.kills[second] += 1
                self.deaths[second] += 1
                hit[second] = pid
        ready_at = await self.wait_until_ready(sidecar, {} if self.fault == "stop" else hit)
        while any(not answer.over and answer.heard_at < ready_at for answer in struck):
            if time.monotonic() > ready_at + PATIENCE_S:
                break
            await asyncio.sleep(0.005)
        self.recovery_s[actor] += [answer.longest_s for answer in struck]
        worst = max((answer.longest_s for answer in struck), default=0.0)
        self.say(f"{actor} {self.fault}: {len(struck)} streams open, the slowest went on after {worst:.3f} s")
        if "executor" in map(dies_as, (actor, *hit)):
            await self.wait_for_end(struck)

    async def wait_until_ready(self, sidecar: Sidecar, hit: dict[str, int]) -> float:
        """Wait until every actor is ready, and those that were hit are others than before; when that was."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(ServiceUnavailable):
                actors = await asyncio.to_thread(lambda: sidecar.actors)
                if all(actor["state"] == "ready" for actor in actors.values()) and all(
                    actors[name]["pid"] != pid for name, pid in hit.items()
                ):
                    return time.monotonic()
            await asyncio.sleep(0.01)
        raise SlipstreamError(f"the service is not whole again after {PATIENCE_S:g} s\n{sidecar.log}")

    async def wait_for_end(self, struck: list[Answer]) -> None:
        """A request that has seen two executors die is suspected of killing them: let these end first."""
        while not all(answer.over for answer in struck):
            await asyncio.sleep(0.01)

    # --- the result ---------------------------------------------------------------------------

    def result(self) -> dict[str, Any]:
        everything = [seconds for samples in self.recovery_s.values() for seconds in samples]
        return {
            "kills": sum(self.kills.values()),
            "streams": len(self.cases),
            "tokens": self.tokens,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "changed": self.changed,
            "unfinished": self.unfinished,
            "recovery_ms": spread(everything),
            "by_actor": {
                actor: {"kills": self.kills[actor], "recovery_ms": spread(self.recovery_s[actor])}
                for actor in (*ACTORS, *sorted(self.kills.keys() - set(ACTORS)))
                if self.kills[actor]
            },
            "fault": self.fault,
            "device": self.device,
            "dtype": self.options.get("dtype"),
            "batch_invariant": self.options.get("batch_invariant", False),
            "services": self.services,
            "errors": self.errors,
        }


def ranks_for(targets: tuple[str, ...]) -> int:
    """How many ranks the executor must have, so that all targets are there."""
    return 1 + max(int(name.partition(".")[2] or 0) for name in targets)


def dies_as(actor: str) -> str:
    """Whose death the supervisor counts: the ranks of an executor die together."""
    return actor.partition(".")[0]


def spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds) or [0.0]
    p50, p99 = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99))
    return {"p50": round(p50 * 1e3, 1), "p99": round(p99 * 1e3, 1), "max": round(ordered[-1] * 1e3, 1)}


def may_follow(token: int, row: dict[int, float], choices: int) -> bool:
    """Whether ``token`` is one of the likeliest ``choices``, up to rounding; ``row`` has their logprobs and its own."""
    return row[token] >= sorted(row.values(), reverse=True)[choices - 1] - ROUNDING


def known_answer(case: Case, vocab_size: int) -> list[int]:
    """What the emulated device answers."""
    import numpy as np

    from .actors.executor.devices.emulated import next_token

    assert case.params.max_tokens is not None
    tokens = list(case.prompt)
    for _ in range(case.params.max_tokens):
        row = (np.array([value]) for value in (tokens[-1], len(tokens), case.params.seed))
        tokens.append(int(next_token(*row, vocab_size)[0]))
    return tokens[len(case.prompt) :]


def clean(result: dict[str, Any]) -> bool:
    """Nothing was lost, repeated, changed or left."""
    return not any(result[name] for name in ("lost", "duplicated", "changed", "unfinished"))


def summary(result: dict[str, Any]) -> str:
    lines = [
        f"{result['kills']} faults ({result['fault']}), {result['streams']} streams on the {result['device']} device"
        f"{'' if result['dtype'] is None else ' in ' + result['dtype']}"
        f"{', batch-invariant' if result['batch_invariant'] else ''}, {result['tokens']} tokens compared",
        f"  lost {result['lost']}, duplicated {result['duplicated']}, changed {result['changed']},"
        f" unfinished {result['unfinished']}",
        "  milliseconds without a token     p50     p99     max",
    ]
    for actor, found in [*result["by_actor"].items(), ("all", result)]:
        ms = found["recovery_ms"]
        lines.append(
            f"  {actor:<12} {found['kills']:>5} faults   {ms['p50']:>8.0f}{ms['p99']:>8.0f}{ms['max']:>8.0f}"
        )
    lines += [f"  {text}" for text in dict.fromkeys(result["errors"])]
    return "\n".join(lines)
