"""What surrounds a service beside another program: systemd, JSON logs, the environment, manifests, host programs."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from slipstream.protocol.errors import SlipstreamError
from slipstream.runtime.log import configure, wants_json
from slipstream.runtime.options.command_line import add_arguments
from slipstream.runtime.options.sources import resolve
from slipstream.runtime.options.table import table
from slipstream.runtime.supervision.child_output import ChildOutput
from slipstream.runtime.supervision.notify import Notify

from slipstream import Client, SamplingParams, Sidecar
from slipstream.options.serve import ServeOptions

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NEAR = 60.0
"""Seconds within which anything happens on a busy machine."""

BIN = Path(sys.executable).parent
SERVE = [str(BIN / "slipstream"), "serve", "--device=emulated", "--max-num-seqs=4"]


# --- a life under systemd, with JSON logs ---------------------------------------------------------


@dataclass
class Life:
    """What was seen of one service from start to stop."""

    told: list[str]
    """Datagrams on the notify socket, in their order."""
    log: list[str]
    code: int
    killed: int
    ready_before_told: bool


def hear(listener: socket.socket, told: list[str]) -> None:
    """What systemd does: take news as they come, for the queue of such a socket is short."""
    with contextlib.suppress(OSError):  # closed, at the end
        while True:
            told.append(listener.recv(4096).decode())


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + NEAR
    while not condition():
        assert time.monotonic() < deadline, f"not within {NEAR} s: {what}"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    folder = tmp_path_factory.mktemp("systemd")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(folder / "notify"))
    environment = os.environ | {
        "NOTIFY_SOCKET": str(folder / "notify"),
        "WATCHDOG_USEC": "200000",
        "PYTHONFAULTHANDLER": "1",  # so that an actor that aborts prints some lines of its own
    }
    endpoint = f"ipc://{folder}/gateway"
    with (
        listener,
        open(folder / "log", "w+") as log,
        subprocess.Popen(
            [*SERVE, "--log-format=json", f"--endpoint={endpoint}"], env=environment, stderr=log
        ) as service,
    ):
        told: list[str] = []
        reader = threading.Thread(target=hear, args=(listener, told), daemon=True)
        reader.start()
        until(lambda: told, "the first news")
        with Client(endpoint) as client:
            ready = client.generate("Once", SamplingParams(max_tokens=2)).finished
            pids = {actor.name: actor.pid for actor in client.actors().actors}
            os.kill(pids["detokenizer"], signal.SIGABRT)
            client.generate("Once", SamplingParams(max_tokens=2))
        until(lambda: told.count("WATCHDOG=1") >= 3, "three beats for the watchdog")
        service.send_signal(signal.SIGTERM)
        code = service.wait(NEAR)
        until(lambda: "STOPPING=1" in told, "the last news")
        log.seek(0)
        yield Life(told, log.read().splitlines(), code, pids["detokenizer"], ready)


def test_systemd_is_told_that_a_service_is_ready_alive_and_stopping(life: Life) -> None:
    first, *rest = life.told
    assert first.startswith("READY=1\nSTATUS=serving slipstream-bundled at ipc://")
    assert life.ready_before_told
    assert set(rest) == {"WATCHDOG=1", "STOPPING=1"}
    assert rest.count("STOPPING=1") == 1
    assert life.code == 0


def test_every_line_of_a_json_log_is_one_object(life: Life) -> None:
    records = [json.loads(line) for line in life.log]
    assert all({"ts", "level", "actor", "event"} <= record.keys() for record in records)
    assert all(abs(record["ts"] - time.time()) < 3600 for record in records)
    events = [record["event"] for record in records if record["actor"] == "supervisor"]
    assert any(event.startswith("ready in ") for event in events)
    assert any(f"(pid {life.killed}) ended: killed by SIGABRT" in event for event in events)


def test_what_an_actor_prints_is_in_the_json_log_under_its_name(life: Life) -> None:
    records = [json.loads(line) for line in life.log]
    printed = [record["event"] for record in records if record["actor"] == "detokenizer"]
    assert "Fatal Python error: Aborted" in printed
    last = max(index for index, record in enumerate(records) if record["actor"] == "detokenizer")
    ended = next(
        index for index, record in enumerate(records) if "ended: killed by SIGABRT" in record["event"]
    )
    assert last < ended, "what it printed comes before the news of its death"


def test_the_watchdog_is_not_fed_while_the_service_is_not_alive(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        notify = Notify({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"})
        assert notify.beat(100.0, alive=False) == 0.5
        with pytest.raises(BlockingIOError):
            listener.recv(64)
        assert notify.beat(100.2, alive=True) == pytest.approx(0.3)
        with pytest.raises(BlockingIOError):
            listener.recv(64)
        assert notify.beat(100.5, alive=True) == 0.5
        assert listener.recv(64) == b"WATCHDOG=1"


def test_an_address_of_no_characters_is_none() -> None:
    """As a container has it whose file says ``NOTIFY_SOCKET=``."""
    notify = Notify({"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "1000000"})
    notify.send("READY=1")
    assert notify.beat(0.0, alive=True) is None


@pytest.mark.parametrize(
    ("period", "every_s"),
    [("2000000", 1.0), ("0", None), ("", None), ("soon", None), ("-5", None), ("9" * 400, 3600.0)],
)
def test_a_watchdog_may_ask_for_any_period(period: str, every_s: float | None) -> None:
    assert Notify({"NOTIFY_SOCKET": "/none", "WATCHDOG_USEC": period}).every_s == every_s


def test_a_watchdog_of_another_process_is_not_fed_and_an_abstract_socket_works() -> None:
    name = f"\0slipstream-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name)
        environ = {"NOTIFY_SOCKET": "@" + name[1:], "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}
        notify = Notify(environ)
        assert notify.beat(0.0, alive=True) is None
        notify.send("READY=1", "STATUS=x\nSTOPPING=1")
        assert listener.recv(64) == rb"READY=1" + b"\n" + rb"STATUS=x\nSTOPPING=1", "a name is no news"
    with pytest.raises(SlipstreamError, match=r"does not take STOPPING=1: .*Connection refused"):
        notify.send("STOPPING=1")


def test_output_is_logged_line_by_line_whatever_the_pieces(capfd: pytest.CaptureFixture[str]) -> None:
    configure(as_json=True)
    output = ChildOutput("executor")
    for piece in (b"one\ntw", b"o\n\n\xff three", b" and more"):
        os.write(output.writer, piece)
        output.read()
    os.close(output.writer)
    output.read()
    assert not output.open
    output.close()
    records = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [record["event"] for record in records] == ["one", "two", "\ufffd three and more"]
    assert {record["actor"] for record in records} == {"executor"}


@pytest.mark.parametrize(
    ("kind", "kubernetes", "json_"),
    [("json", False, True), ("text", True, False), ("auto", False, False), ("auto", True, True)],
)
def test_the_log_is_json_where_it_is_asked_for_and_in_kubernetes(
    kind: str, kubernetes: bool, json_: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    if kubernetes:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert wants_json(kind) is json_


# --- the environment ----------------------------------------------------------------------------

EXAMPLE_VALUES = {
    "device": "emulated",
    "http": "127.0.0.1:0",
    "endpoint": "tcp://127.0.0.1:0",
    "allowed_origins": "https://example.org",
    "lora": "sql=/adapters/sql",
}


@pytest.mark.parametrize("name", [field.name for field in fields(ServeOptions) if field.name != "config"])
def test_every_option_can_be_given_in_the_environment(name: str) -> None:
    option = table(ServeOptions)[name]
    if name in EXAMPLE_VALUES:
        text = EXAMPLE_VALUES[name]
    elif option.kind is bool:
        text = "0" if option.default is True else "1"
    elif option.choices:
        text = next(choice for choice in option.choices if choice != option.default)
    else:
        text = {int: "3", float: "0.5"}.get(option.kind, "something")
    of_http = ("api_key", "allowed_origins", "metrics_prefix", "model_defaults")
    needs = {key: {"http": "127.0.0.1:0"} for key in of_http}
    others = {
        "emulated_step_ms": {"device": "emulated"},
        "max_num_batched_tokens": {"max_num_seqs": "1"},
        "max_loras": {"enable_lora_updates": "1"},
        "max_lora_rank": {"enable_lora_updates": "1"},
    } | needs
    given = {name: text} | others.get(name, {})
    environ = {f"SLIPSTREAM_{key.upper()}": value for key, value in given.items()}
    found = resolve(ServeOptions, arguments={}, environ=environ)
    assert found.origins[name] == "environment"
    assert getattr(found.options, name) != option.default


# --- manifests ----------------------------------------------------------------------------------


def accepted(arguments: list[str], environ: dict[str, str]) -> ServeOptions:
    """The options that a command line and an environment give; anything wrong raises."""
    parser = ArgumentParser(exit_on_error=False)
    add_arguments(parser, ServeOptions)
    return resolve(ServeOptions, arguments=vars(parser.parse_args(arguments)), environ=environ).options


def test_the_systemd_unit_is_of_type_notify_and_its_command_is_accepted() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(EXAMPLES / "systemd" / "slipstream.service")
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) > 0
    program, command, *arguments = shlex.split(service["ExecStart"])
    assert (Path(program).name, command) == ("slipstream", "serve")
    options = accepted(arguments, {})
    assert options.shutdown_timeout < int(service["TimeoutStopSec"])
    assert options.endpoint == f"ipc:///run/{service['RuntimeDirectory']}/gateway"


def test_the_kubernetes_manifest_is_a_native_sidecar_whose_command_is_accepted() -> None:
    pod = yaml.safe_load((EXAMPLES / "kubernetes" / "sidecar.yaml").read_text())["spec"]
    (sidecar,) = pod["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    environ = {entry["name"]: entry.get("value", "from a secret") for entry in sidecar["env"]}
    options = accepted(sidecar["args"], environ)
    assert options.http == f"0.0.0.0:{sidecar['ports'][0]['containerPort']}"
    assert options.api_key == "from a secret"
    assert options.shutdown_timeout < pod["terminationGracePeriodSeconds"]
    paths = {
        probe: sidecar[probe]["httpGet"]["path"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert paths == {"startupProbe": "/ready", "livenessProbe": "/health", "readinessProbe": "/ready"}
    mounts = [{m["name"]: m["mountPath"] for m in c["volumeMounts"]} for c in (sidecar, pod["containers"][0])]
    assert mounts[0]["run"] == mounts[1]["run"] == "/run/slipstream"
    assert options.endpoint == "ipc:///run/slipstream/gateway"
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert set(mounts[0]) | set(mounts[1]) <= volumes


def test_the_dockerfile_copies_what_the_project_needs_and_starts_a_service() -> None:
    text = (EXAMPLES / "docker" / "Dockerfile").read_text()
    entry = json.loads(re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[-1])
    assert entry[-2:] == ["slipstream", "serve"]
    installed = re.search(r'pip install [^"]*"(torch[^"]*)"', text)
    assert installed is not None
    assert f'"{installed[1]}"' in (ROOT / "pyproject.toml").read_text()
    assert re.search(r"docker run .*\\\n.* slipstream:0\.1\.0 (.*)$", text, re.MULTILINE)
    *_, arguments = re.findall(r"slipstream:0\.1\.0 (/models.*)$", text, re.MULTILINE)
    accepted(shlex.split(arguments), {"SLIPSTREAM_API_KEY": "a key"})


# --- host programs ------------------------------------------------------------------------------


def hosts() -> list[Any]:
    javascript = EXAMPLES / "javascript"
    reason = None
    if shutil.which("node") is None:
        reason = "there is no node on this machine"
    elif not (javascript / "node_modules").is_dir():
        reason = "its packages are not installed: npm ci --prefix examples/javascript"
    return [
        pytest.param([sys.executable, str(EXAMPLES / "python" / "host.py")], id="python"),
        pytest.param(
            ["node", str(javascript / "host.mjs")],
            id="javascript",
            marks=pytest.mark.skipif(reason is not None, reason=reason or ""),
        ),
    ]


def run_host(command: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=NEAR, env=environment)


@pytest.mark.parametrize("command", hosts())
def test_a_host_program_starts_asks_and_stops_a_service(command: list[str]) -> None:
    done = run_host(command, "--device=emulated")
    assert done.returncode == 0, done.stderr
    answer, last = done.stdout.rstrip("\n").rsplit("\n", 1)
    assert len(answer) > 20
    assert last == "the service ended with exit code 0"


@pytest.mark.parametrize("command", hosts())
def test_a_host_program_tells_why_its_service_cannot_start(command: list[str]) -> None:
    done = run_host(command, "/nowhere/at/all")
    assert done.returncode == 1
    assert "the service could not start: " in done.stderr
    assert "there is no such folder" in done.stderr


def test_a_sidecar_keeps_what_systemd_tells_your_program_from_its_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        with Sidecar(device="emulated", max_num_seqs=2) as sidecar:
            until(lambda: "\nready in " in sidecar.log, "its log, which is for people in Kubernetes too")
        with pytest.raises(BlockingIOError):
            listener.recv(64)
