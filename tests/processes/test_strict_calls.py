"""Through a whole service: a strict function is called with valid arguments, also where the answer has to match."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from slipstream import Client, SamplingParams, Sidecar
from slipstream.serving.service import BUNDLED_MODEL

TEMPLATE = """{%- if tools -%}{{ '<tool_call>' }}{{ tools | tojson }}{%- endif -%}
{%- for message in messages -%}{{- '<|' + message.role + '|>' + (message.content or '') + '<|end|>' -}}{%- endfor -%}
{{- '<|assistant|>' -}}"""

DAYS = {
    "type": "object",
    "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["days"],
    "additionalProperties": False,
}
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": DAYS, "strict": True}}]
HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("model") / "calls"
    shutil.copytree(BUNDLED_MODEL, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with Sidecar(folder, device="emulated", emulated_step_ms=1) as sidecar, sidecar.client() as client:
        yield client


def test_what_matches_is_an_answer_or_valid_calls(client: Client) -> None:
    """The emulated model says what comes by chance; the grammar leaves it these two ways."""
    assert client.welcome.formats.strict
    answers, calls = 0, 0
    for seed in range(24):
        params = SamplingParams(max_tokens=200, seed=seed, choice=["yes", "no"])
        [output] = client.chat(HELLO, params, tools=TOOLS).outputs
        assert output.finish_reason == "stop"
        if output.tool_calls:
            calls += 1
            assert all(1 <= json.loads(call.arguments)["days"] <= 9 for call in output.tool_calls)
            assert output.text.strip() == ""
        else:
            answers += 1
            assert output.text in ("yes", "no")
    assert answers > 0
    assert calls > 0


def test_a_free_answer_stays_free(client: Client) -> None:
    texts = {
        client.chat(HELLO, SamplingParams(max_tokens=20, seed=seed), tools=TOOLS).outputs[0].text
        for seed in range(4)
    }
    assert len(texts) == 4
