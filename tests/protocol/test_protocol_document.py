"""The protocol as a document: tables and schema are those of the code, and mean what the service does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import msgpack
import pytest
from slipstream.protocol.codec import decode_from_client, pack
from slipstream.protocol.errors import InvalidRequest, ProtocolError
from slipstream.protocol.limits import Limits
from slipstream.protocol.sampling import RANGES, SamplingParams

from slipstream import cli
from slipstream.reference import golden
from slipstream.reference import schema as reference

ROOT = Path(__file__).parents[2]
PUBLIC = json.loads(golden.files()["public.json"])["vectors"]
REFUSED = json.loads(golden.files()["refused.json"])["vectors"]
HALVES = {"client": "FromClient", "service": "ToClient"}
BOUNDS = Limits(max_model_len=1024, vocab_size=2048, max_prompt_bytes=65536)


def complaints(half: str, message: Any) -> list[str]:
    """What one half of the schema has against a message."""
    schema = reference.schema() | {"anyOf": [{"$ref": f"#/$defs/{half}"}]}
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(message)]


# --- the document -------------------------------------------------------------------------------


def test_the_tables_of_the_documents_and_the_schema_are_those_of_the_code() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "tables.py", "--check"], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("", ""), "out of date: run python docs/tables.py"
    assert done.returncode == 0


def test_a_document_that_is_out_of_date_is_found() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import tables  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.pop(0)
    parts = tables.tables()
    text = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    assert tables.filled(text, parts) == text
    changed = dict(parts) | {"limits": parts["limits"].replace("16,777,216", "16,777,217")}
    assert tables.filled(text, changed) != text
    named = set(tables.PART.findall(text))
    assert {name for _, name, _ in named} == set(reference.tables())
    with pytest.raises(KeyError):
        tables.filled(text.replace("begin limits", "begin limit").replace("end limits", "end limit"), parts)


def test_every_message_field_error_and_limit_is_in_the_document() -> None:
    text = reference.document()
    for kind in (*reference.MESSAGES, *reference.PARTS, SamplingParams):
        for field in kind.__struct_fields__:
            assert f"| `{field}` |" in text
    for said, kinds in (("client", reference.FROM_CLIENT), ("service", reference.TO_CLIENT)):
        for kind in kinds:
            assert f"#### The {said} says `{kind.__struct_config__.tag}`\n" in text
            assert reference.about(kind), f"{kind.__name__} does not say what it is for"


# --- the schema ---------------------------------------------------------------------------------


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(reference.schema())


@pytest.mark.parametrize("vector", PUBLIC, ids=lambda vector: f"{vector['sender']}: {vector['name']}")
def test_the_schema_accepts_every_golden_vector_from_its_sender(vector: dict[str, Any]) -> None:
    assert complaints(HALVES[vector["sender"]], in_json(vector["message"])) == []


def in_json(value: Any) -> Any:
    """Binary, which the vectors write as ``{"hex": …}``, as a schema sees it: a text."""
    if isinstance(value, dict):
        return "" if value.keys() == {"hex"} else {key: in_json(item) for key, item in value.items()}
    return [in_json(item) for item in value] if isinstance(value, list) else value


def refused_in_json() -> list[tuple[str, Any]]:
    """The refused frames that can be written in JSON at all; of others a schema says nothing."""
    found: list[tuple[str, Any]] = []
    for vector in REFUSED:
        try:
            found.append(
                (vector["name"], json.loads(json.dumps(msgpack.unpackb(bytes.fromhex(vector["hex"])))))
            )
        except Exception:  # neither MessagePack nor JSON: each way to be wrong has an exception of its own
            continue
    return found


@pytest.mark.parametrize(("name", "message"), refused_in_json())
def test_the_schema_refuses_what_the_service_refuses(name: str, message: Any) -> None:
    assert complaints("FromClient", message), name


def test_enough_of_what_is_refused_can_be_written_in_json() -> None:
    assert len(refused_in_json()) >= 10


def test_the_schema_tells_the_two_sides_apart() -> None:
    welcome = next(vector["message"] for vector in PUBLIC if vector["message"]["t"] == "welcome")
    assert complaints("FromClient", welcome)
    assert complaints("ToClient", welcome | {"later": 1}) == []
    assert complaints("FromClient", {"t": "ping", "later": 1})


@pytest.mark.parametrize("name", RANGES)
def test_the_schema_has_the_ranges_that_the_service_checks(name: str) -> None:
    low, high, above = RANGES[name]
    step = 1 if isinstance(low, int) else 0.001
    wrong = [low if above else low - step] + ([] if isinstance(high, str) else [high + step])
    right = [low + step if above else low] + ([] if isinstance(high, str) else [high])
    for value, accepted in [*((value, False) for value in wrong), *((value, True) for value in right)]:
        message = {"t": "generate", "id": "1", "prompt": "x", "params": {name: value}}
        assert (complaints("FromClient", message) == []) is accepted
        try:
            generate = decode_from_client(pack(message))
            generate.params.check(BOUNDS)  # type: ignore[union-attr]
        except (InvalidRequest, ProtocolError):
            assert not accepted
        else:
            assert accepted


# --- the command --------------------------------------------------------------------------------


def test_the_command_prints_the_document_and_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["protocol"]) == 0
    assert capsys.readouterr().out == reference.document()
    assert cli.main(["protocol", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == reference.schema()


def test_the_command_writes_the_vectors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "new" / "vectors"
    assert cli.main(["protocol", "--vectors", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["public.json", "refused.json"]
    assert (folder / "public.json").read_text(encoding="utf-8") == golden.files()["public.json"]
    capsys.readouterr()
    assert cli.main(["protocol", "--vectors", str(folder / "public.json")]) == 2
    assert f"cannot write the vectors to '{folder}/public.json': File exists" in capsys.readouterr().err
