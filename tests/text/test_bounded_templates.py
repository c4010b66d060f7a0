"""Promises about chat templates as programs: none makes more than it may, and each ends in bounded time."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from slipstream.actors.text.prompts.chat_template import ChatTemplate
from slipstream.actors.text.prompts.iterations import Iterations
from slipstream.protocol.errors import InvalidRequest

ASKED: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
N = "messages|length * 10**9"


def grown(start: str, step: str) -> str:
    """A template that makes ``ns.x`` of itself 60 times."""
    again = "{% set ns.x = " + step + " %}"
    return "{% set ns = namespace(x=" + start + ") %}{% for i in range(60) %}" + again + "{% endfor %}"


def assigned(text: str) -> str:
    return "{% set x %}{% for i in range(99999) %}" + text + "{% endfor %}{% endset %}"


LONG = "{% set a = 'h' * 1000000 %}"

MAKES_TOO_MUCH = {
    "a product": "{{ 'a' * (" + N + ") }}",
    "a product of constants": "{{ ('a' * 10**10)|length }}",
    "a product of lists": "{{ ([1] * (" + N + "))|length }}",
    "a power": "{{ (messages|length + 1) ** (10**8) }}",
    "a power of constants": "{{ 10**(10**8) }}",
    "squares of squares": grown("9", "ns.x * ns.x"),
    "a percent format": "{{ '%999999999d' % messages|length }}",
    "a percent format of a width": "{{ '%*d' % (" + N + ", 1) }}",
    "a format": "{{ '{:>999999999}'.format(1) }}",
    "a format of a width": "{{ '{:{w}}'.format(1, w=" + N + ") }}",
    "the filter format": "{{ '%999999999s'|format(1) }}",
    "the filter center": "{{ 'x'|center(" + N + ") }}",
    "ljust": "{{ messages[0].content.ljust(" + N + ") }}",
    "zfill": "{{ messages[0].content.zfill(" + N + ") }}",
    "expandtabs": "{{ ('\t' * 10000).expandtabs(99999) }}",
    "replace": "{% set a = 'h' * 100000 %}{{ a.replace('h', a)|length }}",
    "the filter replace": "{% set a = 'h' * 100000 %}{{ (a|replace('h', a))|length }}",
    "join": "{% set a = 'h' * 10000 %}{{ a.join(range(90000)|map('string'))|length }}",
    "the filter join": "{% set a = 'h' * 10000 %}{{ (range(90000)|join(a))|length }}",
    "a join of long texts": "{% set a = 'h' * 1000000 %}{{ ([a] * 1000)|join|length }}",
    "texts put together": "{% set a = 'h' * 9000000 %}{{ (a ~ a)|length }}",
    "texts that double": grown("'x'", "ns.x ~ ns.x"),
    "sums that double": grown("[1]", "ns.x + ns.x"),
    "batches": "{% for b in messages|batch(" + N + ", 'x') %}{{ b|length }}{% endfor %}",
    "slices": "{{ messages|slice(" + N + ")|list|length }}",
    "indented JSON": "{{ [1]|tojson(indent=" + N + ") }}",
    "separated JSON": "{% set a = 'h' * 100000 %}{{ (range(90000)|list)|tojson(separators=(a, a))|length }}",
    "the filter indent": "{{ ('a\n' * 1000000)|indent(99999)|length }}",
    "sums of lists": "{{ ([messages] * 90000)|sum(start=[])|length }}",
    "a long list": "{{ (range(99999)|list * 100)|sort|length }}",
    "wrapped words": "{{ ('a b ' * 1000000)|wordwrap(1)|length }}",
    "an assigned block": "{% set a = 'h' * 100000 %}" + assigned("{{ a }}"),
    "a translation": "{{ ('a' * 10000).translate({97: 'h' * 1000000})|length }}",
    "a percent format of bytes": "{{ '%999999999d'.encode() % 1 }}",
    "the filter format of bytes": "{{ '%999999999d'.encode()|format(1) }}",
    "a format of a width in text": "{{ '{:{w}}'.format(1, w='999999999') }}",
    "a format of a width in a map": "{{ '{x:{w}}'.format_map({'x': 1, 'w': 999999999}) }}",
    "the filter replace of a list": "{{ (range(90000)|list|replace(',', 'h' * 100000))|length }}",
    "a join of an attribute": "{% set m = [{'a': 'h' * 1000000}] %}{{ (m * 90000)|join(attribute='a')|length }}",
    "words wrapped by a text": "{{ ('a b ' * 10000)|wordwrap(1, wrapstring='h' * 1000000)|length }}",
    "links with a long target": "{{ ('http://a.de ' * 5000)|urlize(target='h' * 1000000)|length }}",
    "a sum of long lists": "{% set a = range(90000)|list %}{{ ([a] * 9000)|sum(start=[])|length }}",
    "a format that repeats a text": LONG + "{{ (('{0}' * 100000).format(a))|length }}",
    "a format that repeats a text of a map": LONG + "{{ (('{a}' * 100000).format_map({'a': a}))|length }}",
    "a format that is kept": LONG + "{% set f = ('{0}' * 100000).format %}{{ f(a)|length }}",
    "a percent format that repeats a text": LONG + "{{ (('%(a)s' * 100000) % {'a': a})|length }}",
    "the filter format that repeats a text": LONG + "{{ (('%(a)s' * 100000)|format(a=a))|length }}",
    "the filter format of many texts": LONG + "{{ (('%s' * 90000)|format(*[a] * 90000))|length }}",
    "a percent format of a width behind a name": "{{ '%(a(b))999999999s' % {'a(b)': 1} }}",
    "a percent format of a precision": "{{ '%.999999999f' % 1 }}",
    "widths that add up": "{{ ('{:>9999999}' * 3).format(1, 2, 3) }}",
    "the same text again and again": assigned("h" * 20_000),
}


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A gigabyte more than there is: a template that makes more ends in a MemoryError instead of the machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("kind", MAKES_TOO_MUCH)
def test_a_template_that_makes_too_much_is_refused_before_it_has(kind: str, little_memory: None) -> None:
    began = time.process_time()
    template = ChatTemplate(MAKES_TOO_MUCH[kind], {}, datetime.now)
    with pytest.raises(InvalidRequest, match="the model's chat template makes too much of the messages: "):
        "".join(template.write(ASKED))
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("{{ messages[0].content ~ '!' ~ 3 ~ none }}", "hello!3None"),
        ("{{ 'x' * 3 + 'y' }}{{ 2 ** 10 % 1000 }}{{ 7 * 6 }}{{ '%05d|%s' % (42, 'a') }}", "xxxy244200042|a"),
        ("{{ '{:>5}|{}'.format('a', 1700000000) }}", "    a|1700000000"),
        (
            "{{ ', '.join(['a', 'b']) }}{{ ['a', 'b']|join('-') }}{{ messages|join(attribute='role') }}",
            "a, ba-buser",
        ),
        ("{{ 'a b'.replace(' ', '_') }}{{ 'a b'|replace(' ', '+') }}", "a_ba+b"),
        ("{{ {'a': [1]}|tojson(indent=2) }}", '{\n  "a": [\n    1\n  ]\n}'),
        ("{{ budget|default(1000000) }}{{ 'x'|center(3) }}{{ 'a\nb'|indent }}", "1000000 x a\n    b"),
        ("{{ [1, 2]|sum }}{{ [[1], [2]]|sum(start=[]) }}", "3[1, 2]"),
        (
            "{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(1) }}{% set y %}{{ m(none) }}{% endset %}{{ y }}",
            "<1><None>",
        ),
        ("{% for m in messages recursive %}{{ m.role }}{{ nothing }}{% endfor %}", "user"),
        ("{{ 'abc'[::-1] }}{{ 'a\tb'.expandtabs(2) }}{{ 5 // 2 }}{{ -7 % 3 }}", "cbaa b22"),
        (
            "{{ 'Cutoff 20250101: %s' % 'x' }}|{{ '{} 20250101'.format('x') }}",
            "Cutoff 20250101: x|x 20250101",
        ),
        (
            """{{ '{{"date": {}, "id": 123456789}}'.format(20250101) }}""",
            '{"date": 20250101, "id": 123456789}',
        ),
        (
            "{{ '{:,}|{:05.1f}|{x[0]!r}|{:{w}}'.format(1234567, 2.25, 'a', x=['7'], w=3) }}",
            "1,234,567|002.2|'7'|a  ",
        ),
        ("{{ '%s (x) 20250101 %% %-3d|%*d' % ('a', 1, 3, 2) }}", "a (x) 20250101 % 1  |  2"),
        ("{{ 'cut (since)20250101T %s' % 'x' }}", "cut (since)20250101T x"),
        ("{{ '%(b)s' % {'b': 20250101} }}{{ '%s'|format('b') }}", "20250101b"),
        ("{{ ('<'|escape + '{}').format('>') }}", "&lt;&gt;"),
        (
            "{{ messages|selectattr('n', 'undefined')|list|length }}{{ [1]|map('default', 200000)|list }}",
            "1[1]",
        ),
        ("{{ [1]|select('gt', 200000)|list }}", "[]"),
        ("{{ 'a b'.split(' ', 1000000) }}{{ 'long text'|truncate(1000000) }}", "['a', 'b']long text"),
    ],
)
def test_what_a_template_may_do_is_done_as_ever(source: str, written: str) -> None:
    assert "".join(ChatTemplate(source, {}, datetime.now).write(ASKED)) == written


def test_a_template_that_is_compiled_after_another_was_rendered_is_counted_too() -> None:
    """What is constant is computed when it is compiled; a count that was, would be no count."""
    rounds = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="went round 3002 times"):
            "".join(ChatTemplate(rounds, {}, datetime.now).write(ASKED, iterations=Iterations(1, 3000)))


def test_a_loop_without_end_writes_parts_between_which_one_can_pause() -> None:
    template = ChatTemplate(
        "{% for a in range(99999) %}{% for b in range(9) %}{% endfor %}{% endfor %}", {}, datetime.now
    )
    written = template.write(ASKED)
    assert [next(written) for _ in range(5000)] == [""] * 5000
