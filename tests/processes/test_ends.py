"""How a service ends, and what does not end it: its log, its terminal, its surroundings, its frontends, strangers."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from processes import NEAR, Background, alive, until
from slipstream.protocol.messages import ActorState
from slipstream.runtime.machine.run_directory import run_directory, try_lock

from slipstream import Client, SamplingParams
from slipstream.serving.service import BUNDLED_MODEL

EMULATED = ("--device=emulated", "--emulated-step-ms=5")


@dataclass
class Service:
    """A service whose process and surroundings are the test's."""

    process: subprocess.Popen[bytes]
    ready: dict[str, Any]

    def client(self, **options: Any) -> Client:
        return Client(self.ready["endpoint"], **options)

    def actor(self, name: str) -> ActorState:
        with self.client() as client:
            return next(state for state in client.actors().actors if state.name == name)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(NEAR)


@contextmanager
def service(
    *arguments: str,
    device: tuple[str, ...] = EMULATED,
    before: Any = None,
    stderr: Any = None,
    **environment: str,
) -> Iterator[Service]:
    """``before`` runs in the new process, before the command."""
    told, tell = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "slipstream", "serve", *device, *arguments, f"--ready-fd={tell}"],
        env=os.environ | environment,
        pass_fds=(tell,),
        preexec_fn=before,
        stderr=stderr,
        cwd="/",
    )
    os.close(tell)
    with open(told, "rb") as reader:
        line = reader.readline()
    try:
        assert line, "it started"
        yield Service(process, json.loads(line))
    finally:
        process.kill()
        process.wait()


def kill_and_await(served: Service, actor: str) -> None:
    """The actor dies, and is back."""
    before = served.actor(actor)
    os.kill(before.pid, signal.SIGKILL)

    def back() -> bool:
        found = served.actor(actor)
        return found.pid != before.pid and found.state == "ready"

    until(back, f"the {actor} is back")


# --- the log ------------------------------------------------------------------------------------


def test_a_log_whose_reader_is_gone_is_lost_and_nothing_else() -> None:
    reader, writer = os.pipe()
    with service(stderr=writer) as served:
        os.close(writer)
        os.close(reader)
        kill_and_await(served, "detokenizer")  # of which the log has a line
        with served.client() as client:
            assert client.generate("Once", SamplingParams(max_tokens=5, ignore_eos=True)).finished
        assert served.stop() == 0


@pytest.mark.rest
def test_a_log_whose_reader_has_stopped_holds_nothing_up() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.write(writer, b"x" * (1 << 20))  # as much as goes in
    os.set_blocking(writer, True)
    with service(stderr=writer) as served:
        kill_and_await(served, "detokenizer")
        assert served.stop() == 0
    os.close(reader)
    os.close(writer)


def test_a_log_on_a_full_disk_is_lost_and_nothing_else() -> None:
    with open("/dev/full", "wb") as full, service(stderr=full) as served:
        kill_and_await(served, "detokenizer")
        assert served.stop() == 0


@pytest.mark.parametrize("form", [pytest.param("text", marks=pytest.mark.rest), "json"])
def test_a_name_with_control_characters_changes_nothing_but_its_own_place_in_the_log(form: str) -> None:
    name = "a\x1b[2Jb\x9bc\nready in 0 s\r\u2028\u202ed"
    with service(f"--served-model-name={name}", f"--log-format={form}", stderr=subprocess.PIPE) as served:
        assert served.stop() == 0
        assert served.process.stderr is not None
        log = served.process.stderr.read().decode()
    lines = log.split("\n")
    if form == "json":
        assert any(name in json.loads(line)["event"] for line in lines[:-1])
    else:
        assert r"serves a\x1b[2Jb\x9bc\nready in 0 s\r\u2028\u202ed" in log
    assert not set(log) & set("\x1b\x9b\r\u2028\u202e")
    assert "ready in 0 s" not in [line.strip() for line in lines]


@pytest.mark.rest
def test_what_transformers_quotes_of_a_folder_has_no_escape_sequences_either(tmp_path: Path) -> None:
    folder = shutil.copytree(BUNDLED_MODEL, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "a\x1b[31m", "rope_theta": 1e4}
    (folder / "config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "slipstream", "serve", str(folder), "--device=cpu"],
        capture_output=True,
        timeout=NEAR,
    )
    assert done.returncode == 3
    assert rb"KeyError: 'a\x1b[31m'" in done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"Traceback" not in done.stderr


# --- surroundings -------------------------------------------------------------------------------


@pytest.mark.parametrize("descriptors", [pytest.param((2,), marks=pytest.mark.rest), (0, 1, 2)], ids=str)
def test_a_service_starts_with_its_standard_streams_closed(descriptors: tuple[int, ...]) -> None:
    with service(before=lambda: [os.close(descriptor) for descriptor in descriptors]) as served:
        kill_and_await(served, "detokenizer")
        assert served.stop() == 0


def test_a_service_starts_without_the_folder_that_the_environment_names_and_says_so_if_there_is_no_other(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    with service(XDG_RUNTIME_DIR=str(tmp_path / "file")) as served:
        assert str(tmp_path) not in served.ready["endpoint"]
        assert served.stop() == 0
    done = subprocess.run(  # no file may be written, and so no temporary folder is usable
        [
            "sh",
            "-c",
            'ulimit -f 0; exec "$0" -m slipstream serve --device=emulated --ready-fd=1',
            sys.executable,
        ],
        capture_output=True,
        timeout=NEAR,
    )
    assert done.returncode == 3
    assert json.loads(done.stdout)["message"].startswith("no folder for sockets can be made")
    assert b"no folder for sockets can be made" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONOPTIMIZE": "2", "PYTHONWARNINGS": "error"},
        pytest.param({"PYTHONOPTIMIZE": "2"}, marks=pytest.mark.rest),
        pytest.param({"PYTHONWARNINGS": "error"}, marks=pytest.mark.rest),
    ],
    ids=str,
)
def test_what_the_environment_asks_of_python_does_not_show_in_the_log(variables: dict[str, str]) -> None:
    with service(
        "--http=127.0.0.1:0", device=("--device=cpu",), stderr=subprocess.PIPE, **variables
    ) as served:
        with served.client() as client:
            assert client.generate("Once", SamplingParams(max_tokens=5, ignore_eos=True)).finished
        assert served.stop() == 0
        assert served.process.stderr is not None
        log = served.process.stderr.read().decode()
    assert "Traceback" not in log
    assert "Warning" not in log


def test_a_process_manager_that_is_not_there_is_told_as_why_a_service_does_not_start(tmp_path: Path) -> None:
    """As where NOTIFY_SOCKET was inherited from something that is gone."""
    told, tell = os.pipe()
    done = subprocess.run(
        [sys.executable, "-m", "slipstream", "serve", *EMULATED, f"--ready-fd={tell}"],
        env=os.environ | {"NOTIFY_SOCKET": str(tmp_path / "none")},
        pass_fds=(tell,),
        capture_output=True,
        timeout=NEAR,
    )
    os.close(tell)
    with open(told, "rb") as reader:
        (line,) = reader.readlines()
    assert done.returncode == 3
    assert "does not take READY=1" in json.loads(line)["message"]


def test_a_descriptor_of_the_ready_line_that_takes_no_line_ends_the_start_with_a_sentence() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.write(writer, b"x" * (1 << 20))  # as much as goes in
    os.set_blocking(writer, True)
    for descriptor, code, why in (
        (writer, 3, b"cannot be written: nobody reads it"),
        (10**12, 2, b"out of range"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "slipstream", "serve", *EMULATED, f"--ready-fd={descriptor}"],
            pass_fds=(writer,),
            capture_output=True,
            timeout=NEAR,
        )
        assert done.returncode == code
        assert why in done.stderr
        assert b"Traceback" not in done.stderr
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGHUP,
        *(pytest.param(number, marks=pytest.mark.rest) for number in (signal.SIGTERM, signal.SIGINT)),
    ],
)
def test_each_signal_that_asks_for_the_end_drains(number: int) -> None:
    # The suite may itself have been started by nohup, which a service honours.
    with service(before=lambda: signal.signal(number, signal.SIG_DFL)) as served:
        params = SamplingParams(max_tokens=200, ignore_eos=True)
        with served.client() as client:
            stream = client.stream("Once", params)
            tokens = list(next(stream).token_ids)
            served.process.send_signal(number)
            tokens += [token for delta in stream for token in delta.token_ids]
        assert len(tokens) == 200
        assert served.process.wait(NEAR) == 0


def test_a_service_that_is_quit_ends_at_once_and_the_next_one_clears_what_it_left() -> None:
    def before() -> None:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # a shell's background jobs ignore it
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    with service(before=before) as served:
        folder = Path(served.ready["endpoint"].removeprefix("ipc://")).parent
        with served.client() as client:
            pids = [served.process.pid, *(state.pid for state in client.actors().actors)]
        assert served.stop(signal.SIGQUIT) == -signal.SIGQUIT
        until(lambda: not alive(pids), "the actors have ended with it")
        assert folder.is_dir()
        with run_directory():
            assert not folder.exists()


@pytest.mark.rest
@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM])
def test_a_terminal_that_closes_hangs_up_more_than_once_and_the_drain_goes_on(first: int) -> None:
    """The shell sends SIGHUP to its jobs, and the kernel to the foreground when the shell ends; systemd may send
    it right after SIGTERM (SendSIGHUP=)."""
    with service(
        before=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL), stderr=subprocess.PIPE
    ) as served:
        with served.client() as client:
            stream = client.stream("Once", SamplingParams(max_tokens=200, ignore_eos=True))
            tokens = list(next(stream).token_ids)
            served.process.send_signal(first)
            assert served.process.stderr is not None
            for line in served.process.stderr:
                if b"stopping" in line:
                    break
            served.process.send_signal(signal.SIGHUP)
            tokens += [token for delta in stream for token in delta.token_ids]
        assert len(tokens) == 200
        assert served.process.wait(NEAR) == 0


@pytest.mark.rest
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_signals_that_mean_other_things_to_other_servers_change_nothing_and_say_so(number: int) -> None:
    """``kill -USR1`` opens nginx's logs again: a script that does so to every server must end none."""
    with service(stderr=subprocess.PIPE) as served:
        params = SamplingParams(max_tokens=100, ignore_eos=True)
        with served.client() as client:
            stream = client.stream("Once", params)
            tokens = list(next(stream).token_ids)
            for pid in (served.process.pid, *(actor.pid for actor in client.actors().actors)):
                os.kill(pid, number)
            tokens += [token for delta in stream for token in delta.token_ids]
            assert len(tokens) == 100
            assert all(actor.restarts == 0 for actor in client.actors().actors)
        assert served.stop() == 0
        assert served.process.stderr is not None
        assert f"{signal.Signals(number).name} changes nothing here" in served.process.stderr.read().decode()


@pytest.mark.rest
def test_a_service_that_was_started_to_outlive_its_terminal_does() -> None:
    with service(before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as served:
        served.process.send_signal(signal.SIGHUP)
        kill_and_await(served, "detokenizer")
        assert served.stop() == 0


@pytest.mark.rest
def test_a_run_directory_that_somebody_clears_away_is_made_again_and_streams_go_on() -> None:
    with service() as served:
        folder = Path(served.ready["endpoint"].removeprefix("ipc://")).parent
        background = Background(served, "Once", SamplingParams(max_tokens=1000, ignore_eos=True))  # type: ignore[arg-type]
        detokenizer = served.actor("detokenizer").pid
        shutil.rmtree(folder)
        os.kill(detokenizer, signal.SIGKILL)
        assert background.end() == "length"
        assert len(background.tokens) == 1000
        assert folder.stat().st_mode & 0o777 == 0o700
        assert try_lock(folder) is None, "no other service takes it for one that was left behind"
        with served.client() as client:
            assert client.generate("Once", SamplingParams(max_tokens=2, ignore_eos=True)).finished
        endpoint = served.ready["endpoint"]
        command = [sys.executable, "-m", "slipstream", "restart", "tokenizer", "--endpoint", endpoint]
        done = subprocess.run(command, capture_output=True, timeout=NEAR, text=True)
        assert done.returncode == 0, done.stderr
        assert served.stop() == 0
    assert not folder.exists()


# --- frontends ----------------------------------------------------------------------------------


@pytest.mark.rest
def test_a_frontend_that_dies_again_and_again_is_started_again_and_nobody_else_notices() -> None:
    with service("--http=127.0.0.1:0", stderr=subprocess.DEVNULL) as served:
        gateway = served.actor("gateway").pid
        background = Background(served, "Once", SamplingParams(max_tokens=1000, ignore_eos=True))  # type: ignore[arg-type]
        for _ in range(8):
            kill_and_await(served, "http")
        assert served.actor("http").restarts == 8
        assert background.end() == "length"
        assert len(background.tokens) == 1000
        assert served.actor("gateway").pid == gateway
        os.kill(served.actor("http").pid, signal.SIGKILL)
        assert served.stop() == 0, "nothing is under way in a frontend that is not there"


# --- strangers ----------------------------------------------------------------------------------


def test_with_too_few_descriptors_a_service_says_so_instead_of_ending_later() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "slipstream", "serve", *EMULATED],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
        capture_output=True,
        text=True,
        timeout=NEAR,
    )
    assert done.returncode == 3
    assert "a process may open 256 files here, and a service needs 384 at least" in done.stderr
    assert "Traceback" not in done.stderr


def test_more_connections_than_descriptors_end_nothing_and_those_that_were_there_go_on() -> None:
    few = 400
    with service(before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (few, few))) as served:
        pid = served.actor("gateway").pid
        path = served.ready["endpoint"].removeprefix("ipc://")
        with served.client() as client:
            assert client.generate("Once", SamplingParams(max_tokens=2, ignore_eos=True)).finished
            strangers: list[socket.socket] = []
            for number in range(2 * few):
                strangers.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                strangers[-1].connect(path)
                if number % 10 == 0:
                    client.stats()  # by then the gateway has had a turn
            assert client.generate("Once", SamplingParams(max_tokens=50, ignore_eos=True)).finished
            assert client.actors().actors[-1].pid == pid, "it is the same gateway"
            for stranger in strangers:
                stranger.close()
        until(lambda: served.actor("gateway").pid == pid, "a new client is let in")
        assert served.stop() == 0
    assert alive([pid]) == []
