"""Structured output: what a grammar says, every answer is; and nobody else notices."""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
from grammar_schemas import schemas
from hostile_grammars import AMBIGUOUS, HOSTILE_GRAMMARS, longest_times
from llguidance import LLMatcher, LLTokenizer
from rings import read
from simulation import EOS, VOCAB, World, byte_tokenizer, expected_tokens, grammar_compiler, random_params
from slipstream.actors.executor.devices.emulated import EmulatedDevice
from slipstream.actors.executor.executor import Executor
from slipstream.actors.executor.pipeline import Pipeline
from slipstream.actors.executor.sampling.masks import Masks
from slipstream.actors.executor.step.batch import RunningBatch
from slipstream.actors.executor.step.emulated_runner import EmulatedRunner
from slipstream.actors.scheduler.config import SchedulerConfig
from slipstream.actors.scheduler.scheduler import Scheduler
from slipstream.actors.text.grammars.grammar import GrammarCompiler
from slipstream.actors.text.grammars.notation import as_known, json_rule
from slipstream.actors.text.tokenizer import Tokenizer
from slipstream.actors.text.vocabulary.tokenizer_files import load_tokenizer
from slipstream.protocol.codec import as_whole
from slipstream.protocol.errors import InvalidRequest
from slipstream.protocol.events import Completed
from slipstream.protocol.formats.moved_schemas import moved
from slipstream.protocol.formats.tools import offer_of
from slipstream.protocol.internal import Capacity, Enqueue, Join, Refused, Sampled, Submit
from slipstream.protocol.limits import MAX_CHOICE_STRINGS, MAX_GRAMMAR_BYTES, Limits
from slipstream.protocol.messages import Generate
from slipstream.protocol.sampling import Grammar, SamplingParams
from slipstream.runtime.actor import Send

from slipstream import LLM
from slipstream.bench.grammar import grammar_cost
from slipstream.serving.service import BUNDLED_MODEL

BOUNDS = Limits(max_model_len=1024, vocab_size=2048, max_prompt_bytes=1000)


# --- on arrival ---------------------------------------------------------------------------------------


def check(**params: Any) -> None:
    SamplingParams(**params).check(BOUNDS)


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"regex": "a", "choice": ["a"]}, "regex and choice are given"),
        ({"json_schema": {}, "regex": "a"}, "json_schema and regex are given"),
        ({"choice": []}, r"choice=\[\] has no text"),
        ({"choice": ["a", ""]}, "at least one character"),
        ({"choice": ["a"] * (MAX_CHOICE_STRINGS + 1)}, f"limit is {MAX_CHOICE_STRINGS}"),
        ({"choice": ["a" * MAX_GRAMMAR_BYTES, "b"]}, f"choice has {MAX_GRAMMAR_BYTES + 1} bytes"),
        ({"regex": "é" * MAX_GRAMMAR_BYTES}, f"regex has {2 * MAX_GRAMMAR_BYTES} bytes"),
        ({"json_schema": {"const": "a" * MAX_GRAMMAR_BYTES}}, f"limit is {MAX_GRAMMAR_BYTES}"),
        ({"json_schema": {"maximum": float("nan")}}, "cannot be written as JSON"),
        ({"regex": "\ud800"}, "lone surrogate"),
    ],
)
def test_a_grammar_out_of_bounds_is_refused_with_the_value_and_the_limit(
    params: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidRequest, match=named) as refused:
        check(**params)
    assert len(str(refused.value)) < 300


@pytest.fixture
def tokenizer() -> Tokenizer:
    vocab_size = byte_tokenizer().get_vocab_size()
    return Tokenizer(byte_tokenizer(), "no template", 100, vocab_size, compiler=grammar_compiler())


def submit(tokenizer: Tokenizer, request: int, **params: Any) -> list[Send]:
    return tokenizer.receive("gateway", Submit(request, "ab", SamplingParams(seed=1, **params)), 0.0)


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"json_schema": "{"}, "json_schema"),
        ({"json_schema": "[1]"}, "expected an object"),
        ({"json_schema": {"type": "strin"}}, "strin"),
        ({"json_schema": {"type": "string", "minLength": 5, "maxLength": 3}}, "minLength"),
        ({"json_schema": {"not": {"type": "string"}}}, "not"),
        ({"json_schema": {"x-guidance": {"lenient": True}, "not": {}}}, "not"),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json_schema": {"$ref": "#/$defs/nowhere"}}, "nowhere"),
        ({"json_schema": {"$ref": "http://example.com/schema"}}, "example.com"),
        ({"json_schema": {"$ref": "#"}}, "json_schema cannot be followed: no text matches"),
        ({"json_schema": {"enum": []}}, "empty"),
        ({"json_schema": "[" * 500}, "json_schema"),
        ({"json_schema": '{"a":' * 500 + "1" + "}" * 500}, "recursion"),
        ({"regex": "(a"}, "unclosed group"),
        ({"regex": r"(a)\1"}, "backreferences"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": ""}, "empty"),
        ({"regex": r"[^\s\S]"}, "regex cannot be followed: no text matches"),
        ({"regex": "a{2,1}"}, "regex"),
        ({"regex": "[a&&b]"}, "regex cannot be followed: no text matches"),
        ({"lark": 'a ::= "x"'}, "No 'root' rule found"),
    ],
)
def test_a_bad_grammar_is_refused_on_arrival_and_says_why(
    tokenizer: Tokenizer, params: dict[str, Any], named: str
) -> None:
    for _ in range(2):  # the second time from what is remembered
        [(to, refused)] = submit(tokenizer, 1, **params)
        assert to == "gateway"
        assert isinstance(refused, Refused)
        assert refused.code == "invalid_request"
        assert named in refused.message
        assert "llguidance" not in refused.message
    assert isinstance(submit(tokenizer, 2, regex="[0-9]+")[1][1], Enqueue)


@pytest.mark.parametrize("wrong", [0, 1, 5, 11])
def test_of_several_definitions_the_one_that_is_wrong_is_named(tokenizer: Tokenizer, wrong: int) -> None:
    """As the functions of a request are that has to call one of them."""
    definitions: dict[str, Any] = {str(number): {"type": "integer"} for number in range(12)}
    definitions[str(wrong)] = {"type": "strin"}
    schema = {"anyOf": [{"$ref": f"#/$defs/{number}"} for number in definitions], "$defs": definitions}
    for _ in range(2):
        [(_, refused)] = submit(tokenizer, 1, json_schema=schema)
        assert isinstance(refused, Refused)
        assert refused.param == f"json_schema.$defs.{wrong}"
        assert refused.message.startswith(f"json_schema.$defs.{wrong} cannot be followed")
    for other in ({"$defs": []}, {"$defs": {}}, {"$defs": {"a": {}}}):
        [(_, refused)] = submit(tokenizer, 2, json_schema=other | {"type": "strin"})
        assert isinstance(refused, Refused)
        assert refused.param == "json_schema"


@pytest.mark.parametrize("name", ["Größe", "用户", "a b", "List[int]", "A<B>", "50%", "x#y", "a|b^c"])
def test_a_reference_may_have_the_name_as_it_is(tokenizer: Tokenizer, name: str) -> None:
    """As pydantic writes those of classes and the library takes no URI to have: with letters of any script."""
    schema = {"properties": {"r": {"$ref": f"#/$defs/{name}"}}, "$defs": {name: {"const": "ä"}}}
    for where in (schema, {"$defs": {"0": moved(schema, "#/$defs/0", "x")}, "items": {"$ref": "#/$defs/0"}}):
        assert isinstance(submit(tokenizer, 1, json_schema=where)[1][1], Enqueue)
    matcher = grammar_compiler().compile(Grammar("json_schema", json.dumps(schema | {"required": ["r"]})))
    tokens = byte_tokenizer().encode('{"r": "ä"}').ids
    assert matcher.try_consume_tokens(tokens) == len(tokens)
    plain = {"const": {"$ref": f"#/{name}"}, "properties": {"$ref": {"enum": [{"$ref": "ä"}]}}}
    assert as_known(plain) == plain


@pytest.mark.parametrize(
    "neutral",
    [
        {"propertyNames": {"type": "string"}},
        {"propertyNames": True},
        {"items": {"uniqueItems": False}},
        {"unevaluatedProperties": True},
        {"properties": {"a": {"unevaluatedItems": {}, "additionalItems": True}}},
        {"dependentRequired": {}, "dependentSchemas": {}},
        {"not": False},
    ],
    ids=str,
)
def test_a_keyword_whose_value_asks_for_nothing_is_no_keyword_that_cannot_be_followed(
    tokenizer: Tokenizer, neutral: dict[str, Any]
) -> None:
    """As zod writes of each record that its names are texts."""
    assert isinstance(submit(tokenizer, 1, json_schema=neutral)[1][1], Enqueue)
    tools = [{"type": "function", "function": {"name": "f", "strict": True, "parameters": neutral}}]
    offer_of(tools, "auto", None)
    named = {"properties": {key: {"type": "string"} for key in neutral}}  # of a user's own, which stay
    assert as_known(named) == named


def test_a_count_may_be_written_with_a_point(tokenizer: Tokenizer) -> None:
    """As Gson writes all numbers of a map."""
    for schema in (
        {"type": "array", "items": {"type": "integer"}, "minItems": 1.0, "maxItems": 2.0},
        {"type": "string", "minLength": 1.0, "maxLength": 5.0},
    ):
        assert isinstance(submit(tokenizer, 1, json_schema=schema)[1][1], Enqueue)
        assert json_rule(schema) == json_rule({key: as_whole(value) for key, value in schema.items()})


def test_a_schema_that_is_too_deep_is_refused_with_advice_that_can_be_followed() -> None:
    """Few fields of HTTP take a schema as text, so that to give it as one was no advice."""
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(20):
        schema = {"properties": {"a": schema}}
    with pytest.raises(InvalidRequest, match=r"deeper than 32 lists and maps; make it flatter, .* \$defs"):
        check(json_schema=schema)


@functools.cache
def bundled_compiler() -> GrammarCompiler:
    tokenizer = load_tokenizer(BUNDLED_MODEL)
    return GrammarCompiler(tokenizer, tokenizer.get_vocab_size(), [0])


def too_much(fuzz: random.Random) -> SamplingParams:
    """Grammars that grow without measure when they are multiplied out."""
    kind = fuzz.randrange(6)
    size = fuzz.choice([30, 200, 1000])
    if kind == 0:
        return SamplingParams(regex=f"((a{{{size}}}){{{size}}}){{{size}}}")
    if kind == 1:
        return SamplingParams(regex="(a|aa|aaa)*(b|bb)*" * size)
    if kind == 2:
        return SamplingParams(regex=f"(?:.*[a-z].{{{size}}})+x" + r"(\p{L}{1,9}\p{N}){99}")
    if kind == 3:
        text = [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(4)]} for i in range(size // 8)]
        return SamplingParams(json_schema={"type": "object", "allOf": text})
    if kind == 4:
        doubled = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(size // 10)}
        return SamplingParams(json_schema={"$defs": doubled | {f"a{size // 10}": {}}, "$ref": "#/$defs/a0"})
    return SamplingParams(
        json_schema={"type": "integer", "multipleOf": 999_983, "minimum": 1, "maximum": 10**size}
    )


@pytest.mark.parametrize("seed", range(12))
def test_a_grammar_that_explodes_ends_by_its_limits(tokenizer: Tokenizer, seed: int) -> None:
    """Compiled or refused, and masks for it too: the limits count work, so this ends on any machine."""
    params = too_much(random.Random(seed))
    grammar = params.grammar
    assert grammar is not None
    compiler = grammar_compiler()
    try:
        compiler.check(grammar)
    except InvalidRequest:
        return
    matcher = compiler.compile(grammar)
    for token in range(30):
        allowed = int.from_bytes(matcher.compute_bitmask(), "little") & ~compiler.barred(())
        if matcher.is_error() or not allowed:
            break
        matcher.consume_token(
            (allowed & -allowed).bit_length() - 1 if token % 2 else allowed.bit_length() - 1
        )


@pytest.mark.parametrize("grammar", HOSTILE_GRAMMARS, ids=lambda grammar: grammar.source[:30])
def test_no_grammar_takes_long_to_check_or_to_follow(grammar: Grammar) -> None:
    """Ten times what was seen, so that a busy machine does not fail it; without the limits most take for ever."""
    checked, longest = longest_times(bundled_compiler(), grammar)
    assert checked < 2.0
    assert longest < 0.2


@pytest.mark.parametrize("source", AMBIGUOUS)
def test_a_grammar_that_parts_its_text_in_ever_more_ways_ends_before_that_takes_long(source: str) -> None:
    """Each token takes more time than the one before it, so that a long answer would hold up every step."""
    tokenizer = load_tokenizer(BUNDLED_MODEL)
    [letter] = tokenizer.encode("a", add_special_tokens=False).ids
    matcher = bundled_compiler().compile(Grammar("lark", source))
    followed = 0
    while matcher.compute_bitmask() and not matcher.is_error() and matcher.consume_token(letter):
        followed += 1
        assert followed < 300, "half a second of work in all, and 5 ms for this token, with the milder ones"
    assert "Current row has" in matcher.get_error()


def test_a_list_that_is_written_from_the_right_may_be_long() -> None:
    tokenizer = load_tokenizer(BUNDLED_MODEL)
    matcher = bundled_compiler().compile(Grammar("lark", 'start: "[" l "]"\nl: "a" | "a" "," l'))
    items = tokenizer.encode("[" + "a," * 400, add_special_tokens=False).ids
    assert all(matcher.consume_token(item) for item in items)


def test_a_model_without_an_end_has_a_mask_without_one() -> None:
    compiler = GrammarCompiler(byte_tokenizer(), byte_tokenizer().get_vocab_size(), [])
    matcher = compiler.compile(Grammar("regex", "ab?"))
    letters = byte_tokenizer().encode("ab").ids
    matcher.consume_token(letters[0])
    assert int.from_bytes(matcher.compute_bitmask(), "little") & ~compiler.barred(()) == 1 << letters[1]
    matcher.consume_token(letters[1])
    assert int.from_bytes(matcher.compute_bitmask(), "little") & ~compiler.barred(()) == 0


@pytest.mark.parametrize("padding", [1, 31, 267])
@pytest.mark.parametrize("ends", [[], [EOS]])
def test_a_vocabulary_may_be_padded_beyond_the_tokenizers(padding: int, ends: list[int]) -> None:
    """As most are. What pads it never comes."""
    tokenizer = byte_tokenizer()
    size = tokenizer.get_vocab_size() + padding
    compiler = GrammarCompiler(tokenizer, size, ends)
    masks = Masks(compiler, 1)
    join = Join(
        slot=0,
        tokens=b"",
        prompt_len=0,
        start=0,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        seed=0,
        min_tokens=0,
        stop_tokens=np.array(ends, np.int32).tobytes(),
        max_length=10,
        grammar=Grammar("regex", "(?s:.+)"),
    )
    masks.begin((), [join], [(0, 0)])
    filled = np.zeros(-(-size // 32), np.int32)
    masks.fill(filled)
    allowed = int.from_bytes(filled.tobytes(), "little")
    assert allowed & 1 << tokenizer.encode("a").ids[0]
    assert allowed >> tokenizer.get_vocab_size() == 0


TAG = {
    "structures": [
        {"begin": "<f>", "schema": {"type": "integer"}, "end": "</f>"},
        {"begin": "<g>", "schema": {"enum": ["a", "b"]}, "end": "<|end|>"},
    ],
    "triggers": ["<f", "<g"],
}


@pytest.mark.parametrize(
    ("given", "matching", "others"),
    [
        (
            {"bad_words": ["cat", "o d"]},
            ["the dog", "ca t", "Cat"],
            ["a cat", "cat", "hello dog", "concatenate"],
        ),
        ({"bad_words": [".*", "世"]}, ["a.b*", "界"], ["a.*b", "a世"]),
        ({"lark": 'start: "a" b?\nb: /[0-9]+/'}, ["a", "a12"], ["b", "ab", "1"]),
        ({"lark": 'root ::= "a" [0-9]*'}, ["a", "a12"], ["b", "ab", "1"]),
        ({"lark": '%llguidance {}\nstart: "a"'}, ["a"], ["b"]),
        (
            {
                "lark": '{"grammars": [{"lark_grammar": "start: @n"}, {"name": "n", "json_schema": {"type": "null"}}]}'
            },
            ["null"],
            ["1"],
        ),
        (
            {"structural_tag": TAG},
            ["x < y", "<f>12</f>!", '<g>"a"<|end|>', 'a<f>1</f><g>"b"<|end|>'],
            ["<fx", "<f>x", "<g>12"],
        ),
        ({"structural_tag": json.dumps(TAG)}, ["<f>12</f>"], ["<f>x"]),
    ],
)
def test_an_answer_is_held_to_each_kind_of_grammar(
    given: dict[str, Any], matching: list[str], others: list[str]
) -> None:
    compiler, tokenizer = bundled_compiler(), load_tokenizer(BUNDLED_MODEL)
    params = SamplingParams(**given)
    params.check(BOUNDS)
    assert params.grammar is not None
    compiler.check(params.grammar)

    def takes(text: str) -> bool:
        """Whether the text comes through the masks and may end."""
        matcher = compiler.compile(params.grammar or Grammar("", ""))
        for token in tokenizer.encode(text, add_special_tokens=False).ids:
            if not int.from_bytes(matcher.compute_bitmask(), "little") >> token & 1:
                return False
            matcher.consume_token(token)
        return matcher.is_accepting()

    assert [text for text in matching if not takes(text)] == []
    assert [text for text in others if takes(text)] == []


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"lark": "start: foo"}, "lark cannot be followed: unknown name"),
        (
            {"lark": '%llguidance {"no_forcing": false}\nstart: "a"'},
            "which are the service's here; leave it out",
        ),
        ({"lark": '{"grammars": 3}'}, "Expected `array`"),
        ({"lark": '{"grammars": [3]}'}, "Expected `object`"),
        ({"lark": "{"}, "lark cannot be followed"),
        ({"structural_tag": {"structures": [], "triggers": []}}, "it has no structures"),
        (
            {"structural_tag": {"structures": [{"begin": "x", "schema": {}, "end": ""}], "triggers": ["y"]}},
            "'x' begins with no trigger",
        ),
        ({"structural_tag": {"format": {}}}, "structural_tag cannot be followed"),
        ({"bad_words": ["a", ""]}, "at least one character"),
        ({"allowed_token_ids": []}, "allows no token"),
        ({"allowed_token_ids": [9999]}, "a token id of this model is 0 to 2047"),
        ({"bad_words": ["a"], "regex": "b"}, "regex and bad_words are given"),
        ({"bad_words": ["a"] * (MAX_CHOICE_STRINGS + 1)}, f"limit is {MAX_CHOICE_STRINGS}"),
        ({"allowed_token_ids": list(range(1000, 2000)) * 8}, f"limit is {MAX_GRAMMAR_BYTES}"),
    ],
)
def test_a_grammar_that_makes_no_sense_is_refused_by_its_name(given: dict[str, Any], named: str) -> None:
    params = SamplingParams(**given)

    def ask() -> None:
        params.check(BOUNDS)
        bundled_compiler().check(params.grammar or Grammar("", ""))

    with pytest.raises(InvalidRequest, match=re.escape(named)) as refused:
        ask()
    assert refused.value.param in [*given]


def test_masks_are_those_of_the_library_with_the_whole_tokenizer() -> None:
    """The library is given the bytes of tokens alone, so that it keeps no second tokenizer."""
    tokenizer, compiler = load_tokenizer(BUNDLED_MODEL), bundled_compiler()
    whole = LLTokenizer(tokenizer.to_str(), n_vocab=tokenizer.get_vocab_size(), eos_token=[0])
    rng = random.Random(1)
    for source in (
        '%json {"type":"object"}',
        '%json {"items":{"type":"string"}}',
        "/[a-zé世 ]+/",
        "/(?s:.*)/",
    ):
        grammar = f'%llguidance {{"no_forcing": true}}\nstart: {source}'
        theirs, ours = LLMatcher(whole, grammar), LLMatcher(compiler.vocabulary, grammar)
        for _ in range(30):
            allowed = int.from_bytes(theirs.compute_bitmask(), "little")
            assert int.from_bytes(ours.compute_bitmask(), "little") == allowed
            likely = [token for token in range(1, compiler.vocab_size) if allowed >> token & 1]
            if not likely:
                break
            token = rng.choice(likely)
            theirs.consume_token(token)
            ours.consume_token(token)


# --- what comes out -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(device="cpu", max_num_seqs=64, max_num_batched_tokens=512) as llm:
        yield llm


def answers(llm: LLM, asked: list[SamplingParams]) -> list[Any]:
    prompts = [f"Value {number} of the list:" for number in range(len(asked))]
    return [output.outputs[0] for output in llm.generate(prompts, asked)]


def test_every_answer_is_valid_under_its_schema(llm: LLM) -> None:
    """More than two hundred schemas, at several temperatures, all in the same batches."""
    tried = schemas(random.Random(4), 220)
    assert len({json.dumps(schema) for schema in tried}) == len(tried) > 200
    asked = [
        SamplingParams(
            json_schema=schema, max_tokens=600, temperature=(0.0, 0.8, 1.5)[number % 3], seed=number
        )
        for number, schema in enumerate(tried)
    ]
    finished = 0
    for schema, answer in zip(tried, answers(llm, asked), strict=True):
        assert answer.finish_reason == "stop", (schema, answer.text)
        jsonschema.validate(json.loads(answer.text), schema, jsonschema.Draft202012Validator)
        finished += 1
    assert finished == len(tried)


REGEXES = [
    r"[0-9]{1,4}",
    r"(\+49|0)[1-9][0-9]{4,9}",
    r"[A-Z][a-z]{1,8}( [A-Z][a-z]{1,8}){0,2}",
    r"(yes|no|perhaps)[.!?]",
    r"20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
    r"[äöüß]{3}",
    r"a/b\n[\t ]c",
    r"(?i)hello",
]


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_every_answer_matches_its_regex(llm: LLM, ignore_eos: bool) -> None:
    """With ``ignore_eos`` an answer ends where nothing can follow, as with a model that has no end."""
    asked = [
        SamplingParams(regex=regex, max_tokens=80, temperature=1.2, seed=seed, ignore_eos=ignore_eos)
        for regex in REGEXES
        for seed in range(6)
    ]
    for params, answer in zip(asked, answers(llm, asked), strict=True):
        assert answer.finish_reason == "stop", (params.regex, answer.text)
        assert params.regex is not None
        assert re.fullmatch(params.regex, answer.text), (params.regex, answer.text)


def test_every_answer_is_one_of_its_choices_and_any_can_be(llm: LLM) -> None:
    choices = ["yes", "no", "yes, but", 'a "quoted" \\ one\n', "日本", "/", "[0-9]", " leading", "😀"]
    single = [SamplingParams(choice=[text], max_tokens=40) for text in choices]
    assert [answer.text for answer in answers(llm, single)] == choices
    asked = [
        SamplingParams(choice=choices[:number], max_tokens=40, temperature=2.0, seed=number)
        for number in range(1, 10)
        for _ in range(5)
    ]
    for params, answer in zip(asked, answers(llm, asked), strict=True):
        assert params.choice is not None
        assert answer.text in params.choice


def test_min_tokens_does_not_lead_out_of_the_grammar(llm: LLM) -> None:
    """All that the grammar allows is a stop token that min_tokens bars: the grammar wins."""
    digits = llm.generate(["1"], SamplingParams(regex="7", max_tokens=2))[0].outputs[0].token_ids[:1]
    [answer] = answers(
        llm, [SamplingParams(regex="7", min_tokens=5, max_tokens=9, stop_token_ids=digits, ignore_eos=True)]
    )
    assert answer.token_ids == digits


def test_a_stop_text_and_a_length_still_end_an_answer(llm: LLM) -> None:
    by_text, by_length = answers(
        llm,
        [
            SamplingParams(regex="(ab)+", stop="bab", max_tokens=50, temperature=0.0),
            SamplingParams(regex="a{500}", max_tokens=3),
        ],
    )
    assert (by_text.text, by_text.finish_reason) == ("a", "stop")
    assert by_length.finish_reason == "length"
    assert set(by_length.text) == {"a"}


# --- who fails, fails alone ---------------------------------------------------------------------------

EXPLODES = "z{3}a{3}" + "(a|aa|aaa)*(b|bb)*" * 120 + "9"
"""Compiles, has its first masks, and then more states than the limits allow."""


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_grammar_that_explodes_while_it_is_followed_fails_its_own_request_alone(depth: int) -> None:
    grammar_compiler().check(Grammar("regex", EXPLODES))
    world = World(depth, depth=depth)
    world.connect(b"ann")
    for number in range(5):
        params = random_params(random.Random(number))
        world.ask(b"ann", str(number), [number, 7], params)
    with_fault = SamplingParams(max_tokens=50, seed=1, regex=EXPLODES)
    world.ask(b"ann", "explodes", [5, 6], with_fault)
    world.run(world.over)
    assert world.ends.pop((b"ann", "explodes")) == "invalid_request"
    error = world.errors[b"ann", "explodes"]
    assert error.param == "regex"
    assert error.message.startswith("regex cannot be followed to an end: ")
    del world.requests[b"ann", "explodes"]
    world.check()
    world.check_nothing_left()


def test_a_part_of_a_schema_that_nothing_matches_is_named_when_the_answer_gets_there() -> None:
    schema = {"type": "array", "items": {"$ref": "#/items"}, "minItems": 1}
    world = World(1)
    world.connect(b"ann")
    world.ask(b"ann", "a", [5, 6], SamplingParams(max_tokens=50, seed=1, json_schema=schema))
    world.run(world.over)
    assert world.ends[b"ann", "a"] == "invalid_request"
    error = world.errors[b"ann", "a"]
    assert error.param == "json_schema"
    assert error.message.startswith("json_schema cannot be followed to an end: no text matches")


def test_received_tokens_that_are_not_of_the_grammar_fail_their_own_request_alone() -> None:
    world = World(1)
    world.connect(b"ann")
    good = SamplingParams(max_tokens=20, seed=2, regex="[a-f]{9}")
    world.ask(b"ann", "good", [9], good)
    world.requests[b"ann", "bad"] = [9], good
    world.say(b"ann", Generate(id="bad", prompt=[9], params=good, received=[200, 201]))
    world.run(world.over)
    assert world.ends.pop((b"ann", "bad")) == "invalid_request"
    del world.requests[b"ann", "bad"]
    world.check()


def test_a_finished_answer_that_is_sent_again_ends_without_another_token() -> None:
    """The client has all of the answer, and with ``ignore_eos`` no token says that it is the end."""
    world = World(1)
    params = SamplingParams(max_tokens=20, seed=2, regex="[a-f]{9}", ignore_eos=True)
    answer = expected_tokens([9], params)
    assert len(answer) == 9
    world.connect(b"ann")
    key = b"ann", "again"
    world.requests[key], world.tokens[key], world.texts[key] = ([9], params), list(answer), ""
    world.say(b"ann", Generate(id="again", prompt=[9], params=params, received=answer))
    world.run(world.over)
    assert world.ends[key] == "stop"
    assert world.tokens[key] == answer


# --- nobody else notices --------------------------------------------------------------------------------


def test_answers_are_those_of_each_request_alone_in_any_mixture() -> None:
    """In float32: in bfloat16 the last bits of a row depend on what else is in the batch."""
    rng = random.Random(3)
    grammars = [
        SamplingParams(json_schema=schema, max_tokens=60, temperature=0.9) for schema in schemas(rng, 8)
    ] + [SamplingParams(max_tokens=60, temperature=0.9, seed=1)] * 8
    asked = [msgspec.structs.replace(params, seed=seed) for seed, params in enumerate(grammars)]
    prompts = [f"Once there was number {number}" for number in range(len(asked))]
    order = rng.sample(range(len(asked)), len(asked))
    with LLM(device="cpu", max_num_seqs=64, max_num_batched_tokens=512, dtype="float32") as llm:
        alone = [llm.generate([p], [s])[0].outputs[0].token_ids for p, s in zip(prompts, asked, strict=True)]
        together = llm.generate([prompts[i] for i in order], [asked[i] for i in order])
    for i, output in zip(order, together, strict=True):
        assert output.outputs[0].token_ids == alone[i], asked[i]


def test_the_time_in_which_the_device_waits_for_masks_does_not_count_as_computing() -> None:
    clock = [0]
    device = EmulatedDevice(1.0, clock_ns=lambda: clock[0], realtime=False)
    batch = RunningBatch(1, 16, 4, mask_words=grammar_compiler().words)
    pipeline = Pipeline(
        device,
        EmulatedRunner(1, 32, VOCAB),
        2,
        batch.input_capacity,
        batch.output_capacity,
        batch.mask_capacity,
    )
    executor = Executor(pipeline, batch, Capacity(9, 8), {}, masks=Masks(grammar_compiler(), 1))
    scheduler = Scheduler(SchedulerConfig(1, 16, 32, 2, (EOS,)))
    scheduler.receive("executor", Capacity(9, 8), 0.0)
    prompt = np.array([5, 6], np.int32).tobytes()
    params = SamplingParams(max_tokens=9, regex="[a-f]{9}", seed=1)
    for _, plan in scheduler.receive("tokenizer", Enqueue(1, prompt, params, b""), 0.0):
        executor.receive("scheduler", plan, 0.0)

    def turn(now_ns: int) -> Sampled:
        """The tokens of a step come, and then the masks of the next are computed."""
        clock[0] = now_ns
        [(_, sampled)] = executor.receive("device", Completed(), now_ns * 1e-9)
        executor.wake(now_ns * 1e-9)
        assert isinstance(sampled, Sampled)
        scheduler.receive("executor", sampled, now_ns * 1e-9)
        return sampled

    first, second = turn(5_000_000), turn(9_000_000)
    assert first.stalled_ns == 0
    assert second.ended_ns == 5_005_000, "it ended when its masks had been copied"
    assert second.ended_ns - second.started_ns - second.stalled_ns == 1_000_000
    assert scheduler.counters["device_busy_s"] == pytest.approx(0.002)
    assert scheduler.counters["device_idle_s"] == pytest.approx(second.stalled_ns * 1e-9)
    steps = read(executor.ring).spans("compute")
    assert [(span.step, span.end - span.start) for span in steps] == [(0, 1_000_000), (1, 1_000_000)]


def test_the_benchmark_tells_the_pace_of_the_rows_without_a_grammar() -> None:
    cost = grammar_cost(rows=4, step_ms=2.0, steps=30, rounds=1)
    for paces in (cost.without, cost.beside):
        assert paces.mean_itl_ms > 1.9
        assert paces.p50_itl_ms <= paces.p99_itl_ms
    assert cost.slowed == pytest.approx(cost.beside.mean_itl_ms / cost.without.mean_itl_ms - 1, abs=1e-3)


def test_no_other_than_the_allowed_tokens_come_and_the_end_only_if_it_is_one(llm: LLM) -> None:
    allowed = load_tokenizer(BUNDLED_MODEL).encode("the cat sat on 1 2 3", add_special_tokens=False).ids
    asked = [
        SamplingParams(allowed_token_ids=tokens, max_tokens=30, temperature=2.0, seed=1)
        for tokens in (allowed, [*allowed, 0])
    ]
    for params, outcome in zip(asked, answers(llm, asked), strict=True):
        assert set(outcome.token_ids) <= set(params.allowed_token_ids or ())
    endless = answers(llm, asked[:1])[0]
    assert (len(endless.token_ids), endless.finish_reason) == (30, "length")


def test_bad_words_never_come(llm: LLM) -> None:
    plain = [SamplingParams(max_tokens=60, temperature=0.0) for _ in range(4)]
    words = sorted({word for outcome in answers(llm, plain) for word in outcome.text.split()})[:20]
    assert words
    without = [SamplingParams(max_tokens=60, temperature=0.0, bad_words=words) for _ in range(4)]
    for outcome in answers(llm, without):
        assert not any(word in outcome.text for word in words)
