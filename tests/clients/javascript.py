"""OpenAI's client and the AI SDK of JavaScript, each with a tool, a stream and structured output.

They need ``node``, and their packages where ``make clients`` puts them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scripted import MODEL
from served import Turns, served

CALL = ("<think>So.</think><tool_", 'call>{"name": "weather", "arguments": {"city', '": "Rome"}}</tool_call>')
PROGRAMS = Path(__file__).with_name("programs.mjs")
HOME = Path(sys.prefix)

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not (HOME / "node_modules" / "ai").is_dir(),
    reason="no node, or no packages",
)


@pytest.mark.parametrize("program", ["openai", "compatible", "responses"])
def test_a_tool_a_stream_and_structured_output(program: str) -> None:
    script = Turns(CALL, ("It is sunny.",), ("It is su", "nny."), ('{"sky": ', '"blue"}'))
    copied = shutil.copy(PROGRAMS, HOME)  # packages are looked for from where a program lies
    with served(script) as url:
        run = subprocess.run(
            ["node", copied, program, url, MODEL], capture_output=True, text=True, timeout=120, check=False
        )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {
        "told": "It is sunny.",
        "streamed": "It is sunny.",
        "structured": {"sky": "blue"},
    }
    assert script.asked["params"].json_schema["properties"]["sky"]["type"] == "string"
