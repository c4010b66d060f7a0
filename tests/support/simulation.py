"""The whole service in one thread: what the simulation tests share."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
from slipstream.actors.executor.devices.emulated import EmulatedDevice
from slipstream.actors.executor.executor import Executor
from slipstream.actors.executor.model.adapters.loaded import LoadedAdapters
from slipstream.actors.executor.pipeline import Pipeline
from slipstream.actors.executor.ranks.follower import Follower
from slipstream.actors.executor.ranks.leader import Leader, name_of
from slipstream.actors.executor.sampling.masks import Masks
from slipstream.actors.executor.step.batch import RunningBatch
from slipstream.actors.executor.step.emulated_runner import EmulatedRunner, known_logprobs
from slipstream.actors.gateway.gateway import Gateway
from slipstream.actors.scheduler.config import SchedulerConfig
from slipstream.actors.scheduler.scheduler import Scheduler
from slipstream.actors.text.detokenizer import Detokenizer
from slipstream.actors.text.grammars.grammar import GrammarCompiler
from slipstream.actors.text.tokenizer import Tokenizer
from slipstream.protocol import sampling
from slipstream.protocol.codec import decode_to_client
from slipstream.protocol.errors import InvalidRequest
from slipstream.protocol.internal import Adapter, Capacity
from slipstream.protocol.limits import Limits
from slipstream.protocol.messages import Abort, Deltas, Error, Generate, Hello
from slipstream.protocol.sampling import SamplingParams
from slipstream.runtime.simulator import Simulator
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, pre_tokenizers

EOS = 3
MODEL_LEN = 160


@functools.cache
def byte_tokenizer() -> HFTokenizer:
    """One token for each byte: no training, and characters of several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = HFTokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


VOCAB = byte_tokenizer().get_vocab_size()


def known_token(previous: int, position: int, seed: int, vocab_size: int) -> int:
    """``emulated_runner.next_token`` in plain integers; ``test_simulation.py`` holds the two together."""
    mixed = previous * 0x9E3779B97F4A7C15 % 2**64
    mixed ^= (position * 0xBF58476D1CE4E5B9 + seed) % 2**64
    mixed = (mixed ^ (mixed >> 31)) * 0x94D049BB133111EB % 2**64
    mixed ^= mixed >> 29
    return mixed % vocab_size


@functools.cache
def grammar_compiler() -> GrammarCompiler:
    return GrammarCompiler(byte_tokenizer(), VOCAB, [EOS])


GRAMMARS = (
    SamplingParams(regex="[a-f]{2,9}(-[0-9]+){1,3}"),
    SamplingParams(regex="(ab|ba)*c"),
    SamplingParams(choice=["yes", "no", "yes, but", "maybe"]),
    SamplingParams(json_schema={"type": "array", "items": {"enum": ["x", 1, None]}, "maxItems": 5}),
    SamplingParams(
        json_schema={
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer"}},
            "required": ["name"],
            "additionalProperties": False,
        }
    ),
    SamplingParams(lark='start: ("up" | "down" | /[0-9]+/)+ "."'),
    SamplingParams(
        structural_tag={
            "structures": [{"begin": "<n>", "schema": {"type": "integer"}, "end": "</n>"}],
            "triggers": ["<n>"],
        }
    ),
    SamplingParams(allowed_token_ids=[EOS, *range(65, 91)]),
    SamplingParams(bad_words=["a", "no", "zz"]),
)
"""What random requests are asked to match; each can end soon and late."""


ADAPTERS = [Adapter(1, "sql", "/sql"), Adapter(2, "verse", "/verse")]
"""What the executor has loaded. The emulated model computes with one as with another seed."""

THIRD = Adapter(3, "third", "/third")
"""What there is room for beside these."""


def grammar_of(params: SamplingParams) -> dict[str, Any]:
    """The parameters of a grammar."""
    return {name: getattr(params, name) for name in sampling.GRAMMARS}


def expected_tokens(prompt: list[int], params: SamplingParams) -> list[int]:
    """What the emulated model answers, computed alone: the oracle."""
    tokens = list(prompt)
    most = MODEL_LEN if params.max_tokens is None else min(MODEL_LEN, len(prompt) + params.max_tokens)
    stops = set(params.stop_token_ids) | (set() if params.ignore_eos else {EOS})
    assert params.seed is not None
    seed = params.seed ^ next((one.id for one in (*ADAPTERS, THIRD) if one.name == params.adapter), 0)
    matcher = grammar_compiler().compile(params.grammar) if params.grammar else None
    while len(tokens) < most:
        token = known_token(tokens[-1], len(tokens), seed, VOCAB)
        if len(tokens) - len(prompt) < params.min_tokens:
            while token in stops:
                token = (token + 1) % VOCAB
        if matcher is not None:
            bits = int.from_bytes(matcher.compute_bitmask(), "little")
            allowed = [t for t in range(VOCAB) if bits >> t & 1 and (t != EOS or EOS in stops)]
            if not allowed:
                break
            token = min(allowed, key=lambda t: (t - token) % VOCAB)
            assert matcher.consume_token(token)
        tokens.append(token)
        if token in stops:
            break
    return tokens[len(prompt) :]


def expected_prompt_logprobs(
    prompt: list[int], params: SamplingParams
) -> list[dict[str, float] | None] | None:
    """What the emulated model says of a prompt."""
    if params.prompt_logprobs is None:
        return None
    ids, values = known_logprobs(np.array(prompt[1:], np.int64), 1 + params.prompt_logprobs, VOCAB)
    rows = zip(ids.tolist(), values.tolist(), strict=True)
    return [None, *(dict(zip(map(str, tokens), told, strict=True)) for tokens, told in rows)]


class EmulatedAdapters:
    """Adapter slots of the emulated model: reading one takes a few turns, and one in ``/bad`` cannot be read."""

    count = 3

    def load(self, adapter: Adapter) -> Iterator[None]:
        for _ in range(3):
            yield
        if adapter.path.startswith("/bad"):
            raise InvalidRequest(f"the adapter at {adapter.path} cannot be loaded")


class World(Simulator):
    """Five actors around an emulated device, and clients that check what they get."""

    runner: Callable[..., EmulatedRunner] = EmulatedRunner
    batch: Callable[..., RunningBatch] = RunningBatch
    scheduler: Callable[[SchedulerConfig], Scheduler] = Scheduler
    gateway: Callable[..., Gateway] = Gateway
    """What it is made of: a test may put one with a fault in place of any."""

    def __init__(
        self,
        seed: int,
        *,
        depth: int = 2,
        slots: int = 6,
        blocks: int = 40,
        block_size: int = 8,
        budget: int = 24,
        caching: bool = True,
        ranks: int = 1,
    ) -> None:
        followers = tuple(name_of(rank) for rank in range(1, ranks))

        def pipeline_of(world: Simulator, *, check: bool) -> tuple[Pipeline, RunningBatch]:
            device = EmulatedDevice(1.0, clock_ns=world.clock_ns, realtime=False)
            compiler = grammar_compiler()
            batch = self.batch(slots, budget, -(-MODEL_LEN // block_size), mask_words=compiler.words)
            runner = self.runner(slots, MODEL_LEN, VOCAB, check_carry_over=check)
            pipeline = Pipeline(
                device, runner, depth, batch.input_capacity, batch.output_capacity, batch.mask_capacity
            )
            return pipeline, batch

        def executor(world: Simulator) -> Executor:
            pipeline, batch = pipeline_of(world, check=True)
            capacity = Capacity(blocks, block_size, world.deaths.crashed("executor"))
            adapters = LoadedAdapters(EmulatedAdapters())
            adapters.loaded = self.kept_adapters  # what a file has, and so the next incarnation
            masks = Masks(grammar_compiler(), slots)
            if followers:
                return Leader(
                    pipeline, batch, capacity, {}, masks=masks, adapters=adapters, followers=followers
                )
            return Executor(pipeline, batch, capacity, {}, masks=masks, adapters=adapters)

        def follower(rank: int) -> Callable[[Simulator], Follower]:
            """Its tokens are its own, since the emulated device has no collectives: nobody reads them."""
            return lambda world: Follower(name_of(rank), rank, *pipeline_of(world, check=False), {})

        def scheduler(world: Simulator) -> Scheduler:
            return self.scheduler(SchedulerConfig(slots, budget, MODEL_LEN, depth, (EOS,), caching))

        def gateway(world: Simulator) -> Gateway:
            bounds = Limits(max_model_len=MODEL_LEN, vocab_size=VOCAB, max_prompt_bytes=10_000)
            rng = random.Random(seed)
            return self.gateway(
                "", "emulated", bounds, server="simulated", rng=rng, epoch=world.epoch, lora_updates=True
            )

        self.kept_adapters = {adapter.id: adapter for adapter in ADAPTERS}
        self.requests: dict[tuple[bytes, str], tuple[list[int], SamplingParams]] = {}
        self.tokens: dict[tuple[bytes, str], list[int]] = {}
        self.texts: dict[tuple[bytes, str], str] = {}
        self.ends: dict[tuple[bytes, str], str] = {}
        self.errors: dict[tuple[bytes, str], Error] = {}
        self.aborted: set[tuple[bytes, str]] = set()
        self.prompt_logprobs: dict[tuple[bytes, str], list[dict[str, float] | None]] = {}
        super().__init__(
            seed,
            {
                "executor": executor,
                **{name: follower(rank) for rank, name in enumerate(followers, 1)},
                "scheduler": scheduler,
                "detokenizer": lambda world: Detokenizer(byte_tokenizer()),
                "tokenizer": lambda world: Tokenizer(
                    byte_tokenizer(), "no template", MODEL_LEN, VOCAB, compiler=grammar_compiler()
                ),
                "gateway": gateway,
            },
            groups=[("executor", *followers)] if followers else (),
        )
        self.on_client = lambda client, frame: self.receive(client, decode_to_client(frame))

    def connect(self, client: bytes) -> None:
        self.say(client, Hello(protocol=[1, 0]))

    def ask(self, client: bytes, id: str, prompt: list[int], params: SamplingParams) -> None:
        key = (client, id)
        self.requests[key] = (prompt, params)
        self.tokens[key], self.texts[key] = [], ""
        self.say(client, Generate(id=id, prompt=prompt, params=params))

    def abort(self, client: bytes, id: str) -> None:
        self.aborted.add((client, id))
        self.say(client, Abort(id=id))

    def receive(self, client: bytes, message: object) -> None:
        """Every promise about a stream of deltas, checked as they come."""
        if isinstance(message, Error):
            assert message.id is not None, message
            key = (client, message.id)
            assert key not in self.ends, f"{key} ended twice"
            self.ends[key] = message.code
            self.errors[key] = message
        if isinstance(message, Deltas):
            for delta in message.items:
                key = (client, delta.id)
                assert key not in self.ends, f"{key} got a delta after its end"
                self.tokens[key] += delta.token_ids
                self.texts[key] += delta.text
                if delta.prompt_logprobs is not None:
                    assert key not in self.prompt_logprobs, f"{key} was told the logprobs of its prompt twice"
                    self.prompt_logprobs[key] = delta.prompt_logprobs
                if delta.finish_reason is not None:
                    self.ends[key] = delta.finish_reason
                    assert delta.usage is not None
                    assert delta.usage.completion_tokens == len(self.tokens[key])

    def over(self) -> bool:
        return len(self.ends) == len(self.requests)

    def check(self) -> None:
        """Every request ended once, with the tokens that it would have had alone."""
        for key, (prompt, params) in self.requests.items():
            expected = expected_tokens(prompt, params)
            got = self.tokens[key]
            if key in self.aborted:
                assert got == expected[: len(got)], key
                continue
            assert got == expected, f"{key}: {got} is not {expected}"
            assert self.prompt_logprobs.get(key) == expected_prompt_logprobs(prompt, params), key
            reason = "stop" if expected and expected[-1] in {EOS, *params.stop_token_ids} else "length"
            if not params.ignore_eos:
                assert self.ends[key] == reason, key

    def check_nothing_left(self) -> None:
        """No request, slot or block is held once all is over."""
        gateway, scheduler = self.actors["gateway"], self.actors["scheduler"]
        assert isinstance(gateway, Gateway)
        assert isinstance(scheduler, Scheduler)
        assert not gateway.ledger.requests
        assert gateway.ledger.open_bytes == 0
        assert not gateway.ledger.cancelled
        assert not scheduler.sequences
        holdings = scheduler.holdings
        assert not holdings.waiting
        assert not holdings.waiting.clients
        assert holdings.slots.available == scheduler.config.max_num_seqs
        assert holdings.blocks is not None
        assert holdings.blocks.available == holdings.blocks.count
        assert not any(holdings.blocks.references)


def random_params(rng: random.Random) -> SamplingParams:
    params = SamplingParams(
        max_tokens=rng.randrange(1, 60),
        min_tokens=0,
        ignore_eos=rng.random() < 0.3,
        seed=rng.getrandbits(60),
        stop_token_ids=[rng.randrange(VOCAB) for _ in range(rng.randrange(3))],
    )
    if rng.random() < 0.15:
        params = msgspec.structs.replace(params, prompt_logprobs=rng.choice([0, 2, 20]))
    if rng.random() < 0.3:
        grammar = rng.choice(GRAMMARS)
        params = msgspec.structs.replace(params, **grammar_of(grammar))
    return params


def random_prompt(rng: random.Random) -> list[int]:
    if rng.random() < 0.3:
        return list(range(rng.randrange(1, 80)))  # shares a beginning with others
    return [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 80))]


def random_load(world: World, requests: int, *, aborts: float) -> None:
    """Clients that ask at random times, and sometimes change their mind."""
    rng = world.rng
    clients = [b"ann", b"ben", b"cid"]
    for client in clients:
        world.connect(client)
    for number in range(requests):
        client, id = rng.choice(clients), str(number)
        prompt, params = random_prompt(rng), random_params(rng)
        start = 0.01 + rng.random() * 0.05
        world.at(start, lambda c=client, i=id, p=prompt, s=params: world.ask(c, i, p, s))
        if rng.random() < aborts:
            world.at(start + rng.random() * 0.08, lambda c=client, i=id: world.abort(c, i))
    world.run(lambda: len(world.requests) == requests and world.over())
    world.run(lambda: not world.events or idle(world))


def idle(world: World) -> bool:
    gateway, scheduler = world.actors.get("gateway"), world.actors.get("scheduler")
    if not isinstance(gateway, Gateway) or not isinstance(scheduler, Scheduler):
        return False  # one of them is down
    return (
        scheduler.holdings.blocks is not None
        and not gateway.ledger.requests
        and not gateway.ledger.cancelled  # their ends are on the way
        and not scheduler.sequences
        and not scheduler.outstanding
    )
