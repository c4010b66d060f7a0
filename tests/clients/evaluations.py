# pyright: reportMissingImports=false, reportUnknownMemberType=false
"""Programs that evaluate and load a service, guidellm and lm-eval; and LlamaIndex, for its older client of OpenAI.

They run in a second environment of ``make clients``. What a model says is scripted; all else is real.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel
from scripted import MODEL, Script
from served import Turns, served

from slipstream.serving.service import BUNDLED_MODEL

CALL = ("<think>So.</think><tool_", 'call>{"name": "weather", "arguments": {"city', '": "Rome"}}</tool_call>')

OFFLINE = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


class Report(BaseModel):
    sky: str


def weather(city: str) -> str:
    """The weather of a city."""
    return f"Sunny in {city}."


def run(*command: str, **more: Any) -> None:
    program = Path(sys.executable).with_name(command[0])
    done = subprocess.run(
        [program, *command[1:]], env=OFFLINE, capture_output=True, text=True, timeout=300, check=False, **more
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


# --- LlamaIndex -----------------------------------------------------------------------------------


def llama_index(url: str) -> OpenAILike:
    return OpenAILike(
        model=MODEL,
        api_base=f"{url}/v1",
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        context_window=1024,
        max_retries=0,
    )


def test_llama_index_calls_a_tool_whole_and_streamed() -> None:
    tools = [FunctionTool.from_defaults(weather)]
    with served(Turns(CALL, CALL)) as url:
        model = llama_index(url)
        answer = model.chat_with_tools(tools, user_msg="Weather in Rome?")
        assert [call.tool_kwargs for call in model.get_tool_calls_from_response(answer)] == [{"city": "Rome"}]
        *_, last = model.stream_chat_with_tools(tools, user_msg="Weather in Rome?")
        assert [call.tool_kwargs for call in model.get_tool_calls_from_response(last)] == [{"city": "Rome"}]


def test_llama_index_streams_and_has_structured_output() -> None:
    hello = [ChatMessage(role="user", content="Hi")]
    forced = ('[{"name": "Report", "arguments": ', '{"sky": "blue"}}]')
    with served(Turns(("It is su", "nny."), forced)) as url:
        model = llama_index(url)
        assert "".join(part.delta or "" for part in model.stream_chat(hello)) == "It is sunny."
        assert model.as_structured_llm(Report).chat(hello).raw == Report(sky="blue")


# --- evaluations and load -------------------------------------------------------------------------


def test_guidellm_has_no_errors_and_counts_every_token(tmp_path: Path) -> None:
    prompts, report = tmp_path / "prompts.jsonl", tmp_path / "report.json"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {number}."}) + "\n" for number in range(8)))
    with served(Script("One ", "two ", "three.", prompt_ids=[5, 6, 7])) as url:
        run(
            "guidellm",
            "run",
            *("--backend", f"kind=openai_http,target={url},model={MODEL}"),
            *("--profile", "kind=concurrent,streams=4"),
            *("--constraint", "kind=max_requests,count=8"),
            *("--data", f"kind=json_file,path={prompts}"),
            *("--tokenizer", f"kind=huggingface_auto,model={BUNDLED_MODEL}"),
            *("--output", f"kind=json,path={report}"),
            "--disable-console-interactive",
        )
    [benchmark] = json.loads(report.read_text())["benchmarks"]
    assert benchmark["metrics"]["request_totals"]["successful"] == 8
    assert benchmark["metrics"]["request_totals"]["errored"] == 0
    assert benchmark["metrics"]["output_token_count"]["successful"]["mean"] == 3


TASK = """task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def test_lm_eval_generates_in_chats(tmp_path: Path) -> None:
    data = tmp_path / "sums.jsonl"
    asked = [{"question": "2 + 2 =", "answer": "4"}, {"question": "2 + 3 =", "answer": "5"}]
    data.write_text("".join(json.dumps(each) + "\n" for each in asked))
    (tmp_path / "sums.yaml").write_text(TASK.format(data=data))
    with served(Script("4")) as url:
        run(
            "lm_eval",
            *("--model", "local-chat-completions"),
            *("--model_args", f"model={MODEL},base_url={url}/v1/chat/completions,num_concurrent=2"),
            *("--tasks", "sums", "--include_path", str(tmp_path), "--apply_chat_template"),
            *("--output_path", str(tmp_path / "out")),
        )
    [found] = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(found.read_text())["results"]["sums"]["exact_match,none"] == 0.5
