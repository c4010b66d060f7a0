"""Who can reach a service, and what the bytes that reach it can do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Planted, alive, serve, until
from slipstream.protocol.client_key import CLIENT_KEY_VARIABLE, ClientKey, client_key
from slipstream.protocol.endpoints import check_endpoint
from slipstream.runtime.key_folder import KeyFolder
from slipstream.runtime.machine.run_directory import clear_stale, run_directory, try_lock
from slipstream.runtime.options.sources import resolve
from web import Web

from slipstream import AsyncClient, Client, InvalidRequest, SamplingParams, ServiceUnavailable, Sidecar
from slipstream.options.serve import ServeOptions

SHORT = SamplingParams(max_tokens=3, ignore_eos=True)


def keys(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What the command does where the umask takes no right from anybody."""
    command = [sys.executable, "-m", "slipstream", "keys", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", umask=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key folder, as the command makes it, with keys for two clients."""
    path = tmp_path_factory.mktemp("keys") / "mine"
    done = keys(path, "ann", "ben")
    assert done.returncode == 0, done.stderr
    return path


# --- keys ---------------------------------------------------------------------------------------


def test_the_command_makes_keys_that_only_their_owner_can_read_and_writes_none_over(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("server.key", "ann.key", "ben.key", "allowed"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    before = (folder / "ann.key").read_text()
    again = keys(folder, "ann")
    assert again.returncode == 2
    assert "ann.key is there already" in again.stderr
    assert (folder / "ann.key").read_text() == before
    assert ClientKey.read(folder / "ann.key").public in KeyFolder(folder).allowed()


@pytest.mark.rest
@pytest.mark.parametrize("opened", ["", "allowed"], ids=["folder", "list"])
def test_a_key_folder_that_others_can_write_is_refused_wherever_it_is_used(
    opened: str, tmp_path: Path
) -> None:
    """Who can replace the list of those who may connect may connect."""
    folder = tmp_path / "keys"
    assert keys(folder, "ann").returncode == 0
    assert KeyFolder(folder).allowed()
    os.chmod(folder / opened, 0o777 if opened == "" else 0o666)
    with pytest.raises(
        InvalidRequest, match="can be written by others, who could let themselves in: chmod go-w"
    ):
        KeyFolder(folder).allowed()
    served = subprocess.run(
        [
            sys.executable,
            "-m",
            "slipstream",
            "serve",
            f"--curve-keys={folder}",
            "--endpoint=tcp://127.0.0.1:0",
        ],
        capture_output=True,
        text=True,
    )
    assert served.returncode == 3
    assert "can be written by others" in served.stderr


def test_the_command_makes_no_keys_in_a_folder_that_others_can_write(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    done = keys(folder, "ann")
    assert done.returncode == 2
    assert "can be written by others" in done.stderr
    assert not (folder / "server.key").exists()
    folder.chmod(0o1777)
    assert keys(folder, "ann").returncode == 0, "nobody can replace what lies in it"


@pytest.mark.parametrize("name", ["server", "../x", "", "a/b", ".hidden", "x" * 70])
def test_a_name_that_is_none_for_a_client_is_refused(folder: Path, name: str) -> None:
    done = keys(folder, name)
    assert done.returncode == 2
    assert "no name for a client" in done.stderr


def test_a_key_that_others_can_read_is_refused_with_what_to_do(tmp_path: Path) -> None:
    KeyFolder(tmp_path).make_server()
    path = KeyFolder(tmp_path).make_client("ann")
    path.chmod(0o644)
    with pytest.raises(InvalidRequest, match=r"ann\.key can be read by others: chmod 600"):
        ClientKey.read(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "no server key"), ("server x\npublic y\nsecret z", "40 characters"), ("\xff", "cannot be read")],
)
def test_a_file_that_holds_no_client_key_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "x.key"
    path.write_text(text, encoding="latin-1")
    path.chmod(0o600)
    with pytest.raises(InvalidRequest, match=says):
        ClientKey.read(path)


@pytest.mark.parametrize("wrong", ["~" * 40, "#" * 40, "\x7f" * 40], ids=repr)
@pytest.mark.parametrize("name", ["public", "secret", "server"])
def test_a_key_that_is_none_is_named_and_connects_nowhere(
    folder: Path, tmp_path: Path, wrong: str, name: str
) -> None:
    """libzmq would say nothing, and the client would wait."""
    written = (folder / "ann.key").read_text().splitlines()
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text("\n".join(f"{name} {wrong}" if line.startswith(name) else line for line in written))
    with pytest.raises(InvalidRequest, match=f"key, {name}: .* is no key; take the file"):
        ClientKey.read(key)


@pytest.mark.parametrize(
    "become", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "endless"]
)
def test_a_key_that_is_no_file_is_not_waited_for(tmp_path: Path, become: Callable[[Path], None]) -> None:
    become(tmp_path / "key")
    with pytest.raises(InvalidRequest, match=r"cannot be read: .* it is no file"):
        ClientKey.read(tmp_path / "key")


def test_the_environment_names_the_key_for_tcp_and_for_nothing_else(folder: Path) -> None:
    environ = {CLIENT_KEY_VARIABLE: str(folder / "ann.key")}
    assert client_key(None, "tcp://10.0.0.1:5555", environ) == ClientKey.read(folder / "ann.key")
    assert client_key(None, "ipc:///tmp/x", environ) is None
    assert client_key(folder / "ben.key", "tcp://10.0.0.1:5555", environ) == ClientKey.read(
        folder / "ben.key"
    )
    resolve(ServeOptions, keywords={}, environ=environ)  # and a service does not take it for an option


# --- doors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "[::]", "10.0.0.7", "example.org", "eth0"])
def test_an_endpoint_that_others_can_reach_needs_keys_or_the_word_insecure(host: str, folder: Path) -> None:
    endpoint = f"tcp://{host}:5555"
    with pytest.raises(InvalidRequest, match=r"--curve-keys.*--insecure"):
        resolve(ServeOptions, keywords={"endpoint": endpoint}, environ={})
    for more in ({"insecure": True}, {"curve_keys": str(folder)}):
        resolve(ServeOptions, keywords={"endpoint": endpoint} | more, environ={})


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.1.2.3"])
def test_a_loopback_address_needs_none(host: str) -> None:
    assert check_endpoint(f"tcp://{host}:5555")


def test_a_service_with_keys_answers_whom_it_allows_and_nobody_else(folder: Path, tmp_path: Path) -> None:
    KeyFolder(tmp_path).make_server()
    stranger = ClientKey.read(KeyFolder(tmp_path).make_client("stranger"))
    server, _ = KeyFolder(folder).server()
    options: dict[str, Any] = {"curve_keys": str(folder), "http": "127.0.0.1:0"}
    with Sidecar(device="emulated", endpoint="tcp://127.0.0.1:0", **options) as sidecar:
        web = Web(sidecar.ready["http"])
        assert web.chat(max_tokens=2).status == 200, "the OpenAI frontend has a key of its own"
        endpoint = sidecar.endpoint

        def answered(curve: ClientKey | Path | None) -> bool:
            try:
                with Client(endpoint, timeout_s=1.5, curve=curve) as client:
                    return client.generate("Once", SHORT).finished
            except ServiceUnavailable:
                return False

        assert answered(folder / "ann.key")
        assert answered(folder / "ben.key")
        assert not answered(None)
        assert not answered(ClientKey(server, stranger.public, stranger.secret))
        assert not answered(ClientKey(stranger.server, *ann_pair(folder))), (
            "the service is not the one it means"
        )

        async def ask() -> str:
            async with AsyncClient(endpoint, curve=folder / "ann.key") as client:
                return (await client.complete("Once", SHORT)).outputs[0].finish_reason or ""

        assert asyncio.run(ask()) == "length"

        allowed = KeyFolder(folder).allowed_file
        kept = allowed.read_text()
        try:
            allowed.write_text("\n".join(line for line in kept.splitlines() if "ben" not in line) + "\n")
            assert not answered(folder / "ben.key"), "a line taken out counts at once"
            assert answered(folder / "ann.key")
        finally:
            allowed.write_text(kept)
        os.kill(sidecar.pids["gateway"], signal.SIGKILL)
        until(lambda: answered(folder / "ann.key"), "a new gateway has the same keys")
        until(lambda: web.chat(max_tokens=2).status == 200, "the OpenAI frontend is let in again")


def ann_pair(folder: Path) -> tuple[str, str]:
    key = ClientKey.read(folder / "ann.key")
    return key.public, key.secret


def test_a_service_whose_keys_are_missing_does_not_start_and_says_which(tmp_path: Path) -> None:
    code, lines, _ = serve("--device=emulated", f"--curve-keys={tmp_path}")
    assert code == 3
    assert "server.key" in "\n".join(lines)


# --- the run directory --------------------------------------------------------------------------


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where run directories lie, for this test alone."""
    import tempfile

    short = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    return short


def test_a_run_directory_is_private_and_gone_at_the_end(parent: Path) -> None:
    with run_directory() as path, run_directory() as other:
        assert path.parent == parent
        assert path.stat().st_mode & 0o777 == 0o700
        assert path != other
    assert list(parent.iterdir()) == []


def test_what_a_killed_service_left_is_cleared_and_what_is_in_use_stays(parent: Path) -> None:
    sidecar = Sidecar(device="emulated")
    left = Path(sidecar.endpoint.removeprefix("ipc://")).parent
    pids = [sidecar.pid, *sidecar.pids.values()]
    assert left.parent == parent
    with Sidecar(device="emulated") as other, other.client() as client:
        assert left.is_dir(), "it was in use"
        os.kill(sidecar.pid, signal.SIGKILL)
        until(lambda: not alive(pids), "all have ended")
        sidecar.stop()
        assert left.is_dir()
        with run_directory():
            assert not left.exists()
        assert client.generate("Once", SHORT).finished, "the other service kept its own"


def test_nothing_that_is_not_a_stale_directory_of_ours_is_cleared(parent: Path) -> None:
    elsewhere = parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (elsewhere / "precious").touch()
    (parent / "slipstream-run-link").symlink_to(elsewhere)
    (parent / "slipstream-run-file").touch()
    shared = parent / "slipstream-run-shared"
    shared.mkdir()
    shared.chmod(0o755)
    in_use = parent / "slipstream-run-inuse"
    in_use.mkdir(mode=0o700)
    theirs = parent / "slipstream-run-theirs"  # somebody else's idea of a name
    theirs.mkdir(mode=0o700)
    (theirs / "precious").touch()
    lock = try_lock(in_use)
    assert lock is not None
    before = set(parent.iterdir())
    clear_stale(parent)
    assert set(parent.iterdir()) == before
    assert (theirs / "precious").exists()
    assert (elsewhere / "precious").exists()
    os.close(lock)
    clear_stale(parent)
    assert not in_use.exists()


# --- no bytes become code -----------------------------------------------------------------------


def audited(tmp_path: Path, factories: dict[str, str], *arguments: str) -> list[str]:
    """What was turned into code while a service handled messages: events of the interpreter's own audit."""
    log = tmp_path / "audit"
    log.touch()
    (tmp_path / "sitecustomize.py").write_text("import planted_audit\n")
    with (
        Planted(factories, *arguments, path=[tmp_path], PLANTED_AUDIT=str(log)) as service,
        service.client() as client,
    ):
        client.generate("Once upon a time", SamplingParams(max_tokens=20, stop=["zzz"], logprobs=2))
        client.chat([{"role": "user", "content": "What is 1 + 2?"}], SHORT)
        with pytest.raises(InvalidRequest):
            client.generate("", SHORT)
        client.stats()
        client.trace()
        client.actors()
    return [json.loads(line)["event"] for line in log.read_text().splitlines()]


def test_no_message_of_a_running_service_is_unpickled_compiled_or_executed(tmp_path: Path) -> None:
    assert audited(tmp_path, {}, "--device=cpu") == []


def test_the_audit_finds_an_actor_that_evaluates_what_it_is_sent(tmp_path: Path) -> None:
    found = audited(tmp_path, {"tokenizer": "planted:evaluating_tokenizer"})
    assert {"compile", "exec", "pickle.find_class"} <= set(found)
