"""Streams that are kept open at a service while its parts fail, and how long each was without a token.

Each stream asks again and again for an answer. **Recovery** is what a user sees of a fault: for every stream that was
open, the longest time without a token, counted from the fault at the earliest, until the service is whole again and the
stream goes on.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from ..protocol.actors import ACTORS
from ..protocol.client.asynchronous import AsyncClient
from ..protocol.errors import SlipstreamError
from ..sidecar import Sidecar
from .answers import TOP_K, Answer, Case, Counts, known_answer, load_of, make_cases
from .result import spread

MAX_PAUSE_S = 0.3
"""Between a recovery and the next fault, at most."""

TIMEOUT_S = 60.0
"""A stream without a token for this long counts as unfinished."""

STREAMS_PER_CLIENT = 16
"""Streams that share one connection: several connections for the default 64 streams, and several streams on each."""


class StreamsDrill:
    """A drill: its streams and what it counts. A subclass says what fails, and how."""

    fault = "kill"
    """What happens to a target."""

    def __init__(
        self,
        targets: tuple[str, ...],
        rounds: int,
        streams: int,
        device: str = "emulated",
        dtype: str = "float32",
        seed: int = 0,
        say: Callable[[str], None] = lambda text: None,
        *,
        batch_invariant: bool = False,
    ) -> None:
        """``rounds`` faults of each of ``targets``, in an order and at instants that ``seed`` stands for, while
        ``streams`` streams are open; ``say`` is told of each."""
        self.targets = targets
        self.rounds = rounds
        self.device = device
        self.rng = random.Random(seed)
        self.say = say
        self.options: dict[str, Any] = dict(load_of(device).options)
        """The options of each service."""
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
        self.recovery_s: defaultdict[str, list[float]] = defaultdict(list)
        self.counts = Counts()

    async def run(self) -> dict[str, Any]:
        """Carry out all rounds; returns the result."""
        targets = [
            actor for _ in range(self.rounds) for actor in self.rng.sample(self.targets, len(self.targets))
        ]
        while targets:
            targets = await self.run_service(targets)
        return self.result()

    async def run_service(self, targets: list[str]) -> list[str]:
        """Carry out a fault at each of the targets, as many as one service may bear; returns the other targets."""
        raise NotImplementedError

    def clients_of(self, sidecar: Sidecar) -> list[AsyncClient]:
        """The clients over which the streams are spread."""
        return [self.client_of(sidecar) for _ in range(-(-len(self.cases) // STREAMS_PER_CLIENT))]

    def client_of(self, sidecar: Sidecar) -> AsyncClient:
        return sidecar.async_client(timeout_s=TIMEOUT_S)

    # --- streams ------------------------------------------------------------------------------

    def open_streams(self, clients: list[AsyncClient]) -> list[asyncio.Task[None]]:
        """Begin to ask, spread over these clients."""
        self.stopping = False
        return [
            asyncio.create_task(self.keep_asking(number, clients[number % len(clients)]))
            for number in range(len(self.cases))
        ]

    async def end_streams(self, streams: list[asyncio.Task[None]], client: AsyncClient) -> None:
        """Let the last answers come, and have those checked that are not known."""
        self.stopping = True
        await asyncio.gather(*streams)
        await asyncio.gather(*(self.counts.check(answer, client) for answer in self.answers))
        self.answers.clear()

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
        """One stream: ask the same until the drill ends, and compare each answer."""
        case = self.cases[number]
        while not self.stopping:
            answer = self.open[number] = Answer(case)
            try:
                await asyncio.wait_for(self.read(answer, client), TIMEOUT_S)
                answer.finished = True
            except (SlipstreamError, TimeoutError) as error:
                self.counts.unfinished += 1
                self.counts.errors.append(f"{type(error).__name__}: {error}")
            answer.over = True
            if self.exact:
                self.counts.compare(answer)
            else:
                self.answers.append(answer)

    async def read(self, answer: Answer, client: AsyncClient) -> None:
        async for delta in client.generate(answer.case.prompt, answer.case.params):
            answer.take(delta)

    # --- faults -------------------------------------------------------------------------------

    def begin_recovery(self) -> tuple[float, list[Answer]]:
        """A fault comes now: the time, and the answers that are open, whose longest gap is measured from here on."""
        begun = time.monotonic()
        struck = [answer for answer in self.open.values() if not answer.over]
        for answer in struck:
            answer.measure_from(begun)
        return begun, struck

    async def wait_for_recovery(self, target: str, struck: list[Answer], since: float) -> None:
        """Wait until each answer has had a token after ``since`` or is over, and note how long each had none."""
        while any(not answer.over and answer.heard_at <= since for answer in struck):
            if time.monotonic() > since + TIMEOUT_S:
                break
            await asyncio.sleep(0.005)
        self.recovery_s[target] += [answer.longest_s for answer in struck]
        worst = max((answer.longest_s for answer in struck), default=0.0)
        self.say(
            f"{target} {self.fault}: {len(struck)} streams open, the slowest went on after {worst:.3f} s"
        )

    # --- the result ---------------------------------------------------------------------------

    def result(self) -> dict[str, Any]:
        """The findings until now, as the values of ``--json``."""
        everything = [seconds for samples in self.recovery_s.values() for seconds in samples]
        return {
            "kills": sum(self.kills.values()),
            "streams": len(self.cases),
            "tokens": self.counts.tokens,
            "lost": self.counts.lost,
            "duplicated": self.counts.duplicated,
            "changed": self.counts.changed,
            "unfinished": self.counts.unfinished,
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
            "errors": self.counts.errors,
        }
