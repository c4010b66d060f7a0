"""The command line as far as it needs no service."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from slipstream import __version__, cli
from slipstream.commands import connecting, extras


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_overview(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    for name in ("serve", "generate", "chat", "env"):
        assert f"  {name} " in out


@pytest.mark.parametrize("name", ["serve", "generate", "chat", "env"])
def test_help_of_each_command(capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: slipstream {name}")


def test_help_names_a_command_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["help", "serve"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: slipstream serve")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version")[:2] == (0, f"slipstream {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serv"], "unknown command 'serv'; did you mean 'serve'?"),
        (["serve", "--max-num-seq", "3"], "unknown argument --max-num-seq; did you mean '--max-num-seqs'?"),
        (["serve", "--model", "x"], "--model is given by its place alone: slipstream serve MODEL"),
        (["serve", "--max-num-seqs=0"], "--max-num-seqs 0 is out of range; it must be at least 1"),
        (["serve", "--max-num-seqs"], "expected one argument"),
        (["serve", "--dtype=float31"], "did you mean 'float32'?"),
        (["serve", "--http=8000"], "--http 8000 is no HOST:PORT; give 127.0.0.1:8000, for example"),
        (
            ["serve", "--http=http://127.0.0.1:0"],
            "--http http://127.0.0.1:0 is no HOST:PORT; give 127.0.0.1:8000",
        ),
        (["serve", "--http=0.0.0.0:8000"], "can be reached from other machines"),
        (["serve", "--api-key=x"], "has no effect without the OpenAI frontend; add --http HOST:PORT"),
        (["serve", "--endpoint=tcp://0.0.0.0:1"], "can be reached from other machines"),
        (["serve", "--device=emulated", "a", "b"], "unknown argument b"),
        (["generate"], "PROMPT"),
        (["generate", "x", "--endpoint=ipc:///a", "--model=b"], "not allowed with"),
        (["generate", "x", "--max-tokens=many"], "invalid int value: 'many'"),
        (
            ["generate", "x", "--endpoint=nonsense"],
            "endpoint 'nonsense' is neither ipc://PATH nor tcp://HOST:PORT",
        ),
        (["env", "--model=/nowhere/at/all"], "'/nowhere/at/all'"),
    ],
)
def test_usage_errors(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.startswith("slipstream")


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "x", "--endpoint=ipc://here"),
        ("restart", "executor", "--endpoint=ipc://here"),
        ("route", "ipc://here"),
        ("serve", "--device=emulated", "--endpoint=ipc://here"),
    ],
)
def test_relative_paths_in_a_working_directory_that_was_removed(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "'here' begins in the working directory, which has been removed" in err


def test_nobody_at_the_endpoint(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from slipstream.protocol.client import blocking as client

    reached = client.Client
    monkeypatch.setattr(client, "Client", lambda endpoint: reached(endpoint, timeout_s=0.2))
    code, _, err = run(capsys, "generate", "x", "--endpoint=ipc:///tmp/slipstream-nobody-is-here")
    assert code == 3
    assert "no service answered at ipc:///tmp/slipstream-nobody-is-here" in err


def test_print_config(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPSTREAM_SEED", "7")
    code, out, _ = run(capsys, "serve", "--print-config", "--block-size=32", "some-model")
    assert code == 0
    config = tomllib.loads(out)
    assert (config["block-size"], config["seed"], config["model"]) == (32, 7, "some-model")
    lines = {line.split(" = ")[0]: line.split("  # ")[-1] for line in out.splitlines()}
    assert (lines["block-size"], lines["seed"], lines["device"]) == ("command line", "environment", "default")


def test_missing_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "missing", lambda extra: ["torch"])
    code, _, err = run(capsys, "serve")
    assert code == 2
    assert "slipstream serve needs the extra \"engine\": pip install 'slipstream[engine]'" in err
    code, _, err = run(capsys, "generate", "x")
    assert code == 2
    assert "or give --endpoint" in err


def test_env_says_why_a_model_is_not_supported(
    capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("deepseek_v32")
    (folder / "config.json").write_text('{"model_type": "deepseek_v32", "num_hidden_layers": 1}')
    code, out, _ = run(capsys, "env", f"--model={folder}")
    assert code == 4
    assert "'deepseek_v32' is not supported: " in out
    code, out, _ = run(capsys, "env")
    assert code == 0
    assert f"slipstream   {__version__}" in out


def test_help_is_quick_to_load() -> None:
    program = "import sys; from slipstream.cli import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for module in ("zmq", "msgspec", "torch", "asyncio"):
        assert f"'{module}'" not in done.stdout


def test_a_reader_that_goes_away_is_no_error() -> None:
    program = "import sys; from slipstream.cli import main; sys.exit(main(['serve', '--help']))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_what_is_complained_about_changes_nothing_but_its_own_place_on_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("a\x1b[2J\u202e", "a\udcff"):
        code, _, err = run(capsys, "serve", f"--dtype={name}")
        assert code == 2
        assert err.rstrip("\n").isprintable()
        assert err.encode()


def test_a_terminal_is_shown_the_control_characters_of_an_answer_and_a_program_gets_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = "a\x1b[2J\n\tb\u202e"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert connecting.for_standard_output(answer) == "a\\x1b[2J\n\tb\\u202e"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert connecting.for_standard_output(answer) == answer


@pytest.mark.parametrize(
    "arguments", [("--help",), ("serve", "--print-config"), ("protocol", "--schema")], ids=str
)
def test_output_that_a_full_disk_does_not_take_is_told_in_a_sentence(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "slipstream", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 4
    assert done.stderr.endswith("the output cannot be written: No space left on device\n")
    assert "Traceback" not in done.stderr


def test_a_result_that_cannot_be_written_is_refused_before_it_is_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "not" / "here", "No such file or directory")):
        told = f"{str(path)!r} cannot be written: {why}"
        for command in (("bench", "overlap"), ("bench", "serve"), ("drill",)):
            code, out, err = run(capsys, *command, "--json", str(path))
            assert (code, out) == (2, "")
            assert f"argument --json: {told}" in err
        assert f"argument --svg: {told}" in run(capsys, "bench", "overlap", "--svg", str(path))[2]


def test_a_folder_for_keys_that_cannot_be_made_is_told_in_a_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    for path, why in ((file, "File exists"), (file / "in", "Not a directory")):
        code, _, err = run(capsys, "keys", str(path), "ann")
        assert code == 2
        assert f"the folder {path} cannot be made: {why}" in err


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_standard_stream_that_is_closed_leads_nowhere(closed: int) -> None:
    program = """
import sys
from slipstream.runtime.machine.standard_streams import open_missing
open_missing()
print(sys.stdin.read(), sys.stdout.isatty(), flush=True)
print("beside", file=sys.stderr)
"""
    command = ["sh", "-c", f'exec "$@" {closed}>&-', "sh", sys.executable, "-c", program]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    said = [" False\n", "beside\n"]
    if closed:
        said[closed - 1] = ""
    assert (done.returncode, [done.stdout, done.stderr]) == (0, said)


ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_terminal_of_few_characters_is_shown_what_it_has() -> None:
    command = [sys.executable, "-m", "slipstream", "serve", "--help"]
    done = subprocess.run(command, env=os.environ | ASCII, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u2026" in done.stdout


def test_bytes_that_are_no_text_in_the_locale_are_no_traceback() -> None:
    program = "from slipstream.cli import main; main(['--version']); print(input())"
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command,
        env=os.environ | ASCII,
        input="caf\u00e9 \U0001f600\n".encode(),
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"caf\\udcc3\\udca9 \\udcf0\\udc9f\\udc98\\udc80\n")
