"""Adapters of a whole service: from the start and at run time, over HTTP and ZeroMQ, and through a kill."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adapters import change_config, make_adapter, merge
from processes import Background, serve
from tiny_models import make_checkpoint
from web import Web

from slipstream import Client, InvalidRequest, SamplingParams, Sidecar

PROMPT = list(range(3, 23))
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True}
OPTIONS: dict[str, Any] = {"device": "cpu", "dtype": "float32", "max_num_seqs": 4, "spare_executor": "on"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("base") / "base", max_position_embeddings=2048)


@pytest.fixture(scope="module")
def sql(base: Path) -> Path:
    return make_adapter(base, base.parent / "sql", seed=1)


@pytest.fixture(scope="module")
def verse(base: Path) -> Path:
    return make_adapter(base, base.parent / "verse", seed=2, rank=8, use_rslora=True)


@pytest.fixture(scope="module")
def merged(base: Path, verse: Path) -> list[int]:
    """What the model answers that the second was merged into."""
    with Sidecar(merge(base, verse, base.parent / "merged"), **OPTIONS) as sidecar:
        return answer(sidecar.client())


@pytest.fixture(scope="module")
def service(base: Path, sql: Path) -> Iterator[Sidecar]:
    with Sidecar(
        base, lora=[f"sql={sql}"], enable_lora_updates=True, max_lora_rank=8, http="127.0.0.1:0", **OPTIONS
    ) as sidecar:
        yield sidecar


def answer(client: Client, **params: Any) -> list[int]:
    return client.generate(PROMPT, SamplingParams(**GREEDY | params)).outputs[0].token_ids


def over_http(web: Web, model: str) -> Any:
    body = {"model": model, "prompt": PROMPT, "return_token_ids": True} | GREEDY
    return web("/v1/completions", body)


def test_adapters_come_and_go_at_run_time_and_survive_the_executor(
    service: Sidecar, verse: Path, merged: list[int]
) -> None:
    web, client = Web(service.ready["http"]), service.client()
    plain, with_sql = answer(client), answer(client, adapter="sql")
    assert plain != with_sql != merged
    assert over_http(web, "verse").status == 404
    loaded = web("/v1/load_lora_adapter", {"lora_name": "verse", "lora_path": str(verse)})
    assert (loaded.status, loaded.body) == (200, b"Success: LoRA adapter 'verse' added successfully.")
    models = {card["id"]: card for card in web("/v1/models").json["data"]}
    assert {name: card["parent"] for name, card in models.items()} == {
        service.ready["model"]: None,
        "sql": service.ready["model"],
        "verse": service.ready["model"],
    }
    assert models["verse"]["root"] == str(verse)
    assert answer(client, adapter="verse") == merged
    reply = over_http(web, "verse").json
    assert (reply["model"], reply["choices"][0]["token_ids"]) == ("verse", merged)

    long = {"max_tokens": 600, "adapter": "verse"}
    expected = answer(client, **long)
    stream = Background(service, PROMPT, SamplingParams(**GREEDY | long)).begun()
    os.kill(service.pids["executor"], signal.SIGKILL)
    assert stream.end() == "length"
    assert stream.tokens == expected
    assert answer(client) == plain
    assert answer(client, adapter="sql") == with_sql

    gone = web("/v1/unload_lora_adapter", {"lora_name": "verse"})
    assert (gone.status, gone.body) == (200, b"Success: LoRA adapter 'verse' removed successfully.")
    assert over_http(web, "verse").status == 404
    assert [adapter.name for adapter in client.adapters()] == ["sql"]
    assert web("/v1/unload_lora_adapter", {"lora_name": "verse"}).status == 404
    [info] = [
        line for line in web("/metrics").body.decode().splitlines() if line.startswith("slipstream_lora_")
    ]
    assert 'max_lora="8",' in info
    assert 'running_lora_adapters="",waiting_lora_adapters=""' in info


def test_a_bad_adapter_is_refused_with_the_reason_and_everything_else_goes_on(
    service: Sidecar, base: Path, tmp_path: Path
) -> None:
    web, client = Web(service.ready["http"]), service.client()
    before = answer(client, adapter="sql")
    bad = make_adapter(base, tmp_path / "bad", seed=5)
    change_config(bad, use_dora=True)
    stream = Background(service, PROMPT, SamplingParams(adapter="sql", **GREEDY)).begun()
    refused = web("/v1/load_lora_adapter", {"lora_name": "bad", "lora_path": str(bad)})
    assert refused.status == 400
    assert "use_dora=True: DoRA" in refused.json["error"]["message"]
    with pytest.raises(InvalidRequest, match="there is no such folder"):
        client.load_adapter("nowhere", str(tmp_path / "nowhere"))
    with pytest.raises(InvalidRequest, match=r"name='sql' is the adapter at .*; unload it"):
        client.load_adapter("sql", str(bad))
    assert stream.end() == "length"
    assert stream.tokens == answer(client, adapter="sql") == before
    assert [adapter.name for adapter in client.adapters()] == ["sql"]


@pytest.mark.rest
def test_ranks_have_adapters_from_the_start_and_again_after_a_kill(
    service: Sidecar, base: Path, sql: Path
) -> None:
    """The tokens are those of one process."""
    one = service.client()
    expected = answer(one), answer(one, adapter="sql")
    with Sidecar(base, lora=[f"sql={sql}"], tensor_parallel_size=2, **OPTIONS) as sidecar:
        client = sidecar.client()
        assert (answer(client), answer(client, adapter="sql")) == expected
        os.kill(sidecar.pids["executor.1"], signal.SIGKILL)
        assert (answer(client, adapter="sql"), answer(client)) == expected[::-1]


@pytest.mark.rest
def test_a_service_that_cannot_load_one_does_not_start(base: Path, tmp_path: Path) -> None:
    bad = make_adapter(base, tmp_path / "bad", seed=5, rank=17)
    code, lines, _ = serve(str(base), "--device", "cpu", "--lora", f"bad={bad}")
    assert code == 3
    assert any("its rank is 17, and there is room for 16; raise --max-lora-rank" in line for line in lines)
