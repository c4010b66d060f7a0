"""The command line: ``slipstream serve``, ``generate``, ``chat``, ``bench``, ``env``.

A command is one function under ``@command``: it gives its parser its options and returns what runs.
Each imports what it needs when it is chosen, so that ``slipstream --help`` comes at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__

if TYPE_CHECKING:
    from .protocol.client import Client

DONE, USAGE, COULD_NOT_START, FAILED = 0, 2, 3, 4
INTERRUPTED = 130

EXTRAS = {
    "engine": ("torch", "transformers", "tokenizers", "safetensors", "jinja2", "numpy", "uvloop"),
}
"""What each extra installs, by the names of the modules."""

Run = Callable[[argparse.Namespace], int]

COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], Run]]] = {}


def command(summary: str) -> Callable[[Callable[[argparse.ArgumentParser], Run]], Any]:
    """Make a function a command of the same name."""

    def register(
        function: Callable[[argparse.ArgumentParser], Run],
    ) -> Callable[[argparse.ArgumentParser], Run]:
        COMMANDS[function.__name__] = (summary, function)
        return function

    return register


class Stop(Exception):
    """End the command with this exit code, after one sentence on stderr."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Parser(argparse.ArgumentParser):
    """Complains in one line, and says which option may have been meant."""

    def error(self, message: str) -> NoReturn:
        raise Stop(USAGE, f"{message} (see {self.prog} --help)")

    def read(self, arguments: list[str]) -> argparse.Namespace:
        found, unknown = self.parse_known_args(arguments)
        if unknown:
            from .runtime.config import did_you_mean

            word = unknown[0].partition("=")[0]
            self.error(f"unknown argument {word}{did_you_mean(word, self._option_string_actions)}")
        return found


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 2 for a usage error, 3 if it could not start, 4 if it
    failed while running."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    prog = f"slipstream {name}" if name in COMMANDS else "slipstream"
    try:
        if name in COMMANDS:
            summary, declare = COMMANDS[name]
            parser = Parser(prog=prog, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False)
            run = declare(parser)
            return run(parser.read(rest))
        return overview(name)
    except Stop as stop:
        print(f"{prog}: {stop}", file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # nobody reads what is left in the buffer
        return DONE
    except Exception as error:
        from .protocol.errors import InvalidRequest, SlipstreamError

        if not isinstance(error, SlipstreamError):
            raise
        print(f"{prog}: {type(error).__name__}: {error}", file=sys.stderr)
        return USAGE if isinstance(error, InvalidRequest) else FAILED


def overview(name: str) -> int:
    """What to do when the first word is no command."""
    if name == "--version":
        print(f"slipstream {__version__}")
    elif name in ("-h", "--help", "help"):
        print(
            "usage: slipstream COMMAND ...\n\nServes language models with asynchronous continuous batching.\n"
        )
        for known, (summary, _) in COMMANDS.items():
            print(f"  {known:<10} {summary}")
        print("\n'slipstream COMMAND --help' tells the options of a command.")
    else:
        from .runtime.config import did_you_mean

        raise Stop(USAGE, f"unknown command {name!r}{did_you_mean(name, COMMANDS)} (see slipstream --help)")
    return DONE


# --- the commands -------------------------------------------------------------------------------


@command("start a service and run it until SIGTERM or Ctrl-C")
def serve(parser: argparse.ArgumentParser) -> Run:
    from .options import ServeOptions
    from .runtime.config import add_arguments, resolve, show

    add_arguments(parser, ServeOptions)
    parser.usage = "slipstream serve [MODEL] [options]"
    parser.epilog = (
        "Each option can also be given in the environment, --max-num-seqs as SLIPSTREAM_MAX_NUM_SEQS, or in"
        " the file, as max-num-seqs. The command line wins over the environment, and that over the file."
    )

    def run(found: argparse.Namespace) -> int:
        resolved = resolve(ServeOptions, arguments=vars(found))
        if resolved.options.print_config:
            print(show(resolved))
            return DONE
        need("serve", "engine")
        from .service import serve

        return serve(resolved.options)

    return run


@command("answer prompts and print the answers as they come")
def generate(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="several are answered at once")
    add_service(parser)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per prompt, when all are finished"
    )

    def run(found: argparse.Namespace) -> int:
        import msgspec

        params = [sampling(found)] * len(found.prompts)
        with reach(found, "generate") as client:
            if found.json:
                for output in client.generate_many(found.prompts, params):
                    print(msgspec.json.encode(output).decode())
            elif len(found.prompts) == 1:
                for delta in client.stream(found.prompts[0], params[0]):
                    print(delta.text, end="", flush=True)
                print()
            else:
                printer = Interleaved()
                client.generate_many(
                    found.prompts,
                    params,
                    on_delta=lambda number, delta: printer.add(
                        number, delta.text, delta.finish_reason is not None
                    ),
                )
        return DONE

    return run


@command("talk with a model")
def chat(parser: argparse.ArgumentParser) -> Run:
    add_service(parser)

    def run(found: argparse.Namespace) -> int:
        import readline  # gives input() its history and its line editing

        readline.set_auto_history(True)
        params = sampling(found)
        messages: list[dict[str, Any]] = []
        with reach(found, "chat") as client:
            print(f"{client.welcome.model}. Ctrl-C ends an answer, Ctrl-D ends the talk.", file=sys.stderr)
            while True:
                try:
                    words = input("> ")
                except EOFError:
                    print()
                    return DONE
                except KeyboardInterrupt:
                    print()
                    continue
                if words.strip():
                    answer_turn(client, messages, words, params)

    return run


@command("show versions, extras and devices; with --model, whether it is supported and why")
def env(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument(
        "--model", metavar="M", help="a local folder or a hub name; only its configuration is read"
    )

    def run(found: argparse.Namespace) -> int:
        import platform
        from importlib.metadata import PackageNotFoundError, version

        import zmq

        print(f"slipstream   {__version__}")
        print(f"python       {platform.python_version()} on {platform.platform()}")
        for package in (
            "pyzmq",
            "msgpack",
            "msgspec",
            "torch",
            "transformers",
            "tokenizers",
            "numpy",
            "uvloop",
        ):
            try:
                print(f"{package:<12} {version(package)}")
            except PackageNotFoundError:
                print(f"{package:<12} -")
        print(f"libzmq       {zmq.zmq_version()}")
        for extra in EXTRAS:
            lacking = missing(extra)
            print(f"extra {extra:<6} {'installed' if not lacking else 'lacks ' + ', '.join(lacking)}")
        for line in devices():
            print(f"device       {line}")
        if found.model is None:
            return DONE
        need("env --model", "engine")
        supported, why = judge(found.model)
        print(f"model        {found.model}: {why}")
        return DONE if supported else FAILED

    return run


@command("measure how busy the device is kept, and how fast a service is")
def bench(parser: argparse.ArgumentParser) -> Run:
    from .bench import COMMANDS as benches

    kinds = parser.add_subparsers(metavar="|".join(benches), required=True)
    for name, (declare, measure) in benches.items():
        kind = kinds.add_parser(name, allow_abbrev=False)
        declare(kind)
        kind.set_defaults(measure=measure)

    def run(found: argparse.Namespace) -> int:
        need("bench", "engine")
        found.measure(found)
        return DONE

    return run


# --- what they share ----------------------------------------------------------------------------


def add_service(parser: argparse.ArgumentParser) -> None:
    """Where the answers come from, and how long and how daring they are."""
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--endpoint", metavar="E", help="of a running service; left out: a service just for this"
    )
    place.add_argument(
        "--model", metavar="M", help="for a service just for this; left out: the bundled model"
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="most tokens of an answer")
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="0: always the most likely token (default 1)"
    )


def sampling(found: argparse.Namespace) -> Any:
    from .protocol.sampling import SamplingParams

    temperature = 1.0 if found.temperature is None else found.temperature
    return SamplingParams(max_tokens=found.max_tokens, temperature=temperature)


@contextmanager
def reach(found: argparse.Namespace, name: str) -> Iterator[Client]:
    """A client of the service that was asked for, which is started if it is not there."""
    from contextlib import ExitStack

    from .protocol.client import Client
    from .protocol.errors import InvalidRequest, SlipstreamError

    with ExitStack() as stack:
        try:
            if found.endpoint is not None:
                client = stack.enter_context(Client(found.endpoint))
            else:
                need(name, "engine", "or give --endpoint")
                from .sidecar import Sidecar

                client = stack.enter_context(stack.enter_context(Sidecar(found.model)).client())
        except InvalidRequest as error:
            raise Stop(USAGE, str(error)) from None
        except SlipstreamError as error:
            raise Stop(COULD_NOT_START, str(error)) from None
        yield client


def answer_turn(client: Client, messages: list[dict[str, Any]], words: str, params: Any) -> None:
    """One question and its answer, which Ctrl-C ends; both then belong to the conversation."""
    from .protocol.errors import SlipstreamError

    messages.append({"role": "user", "content": words})
    answer = ""
    stream = client.stream_chat(messages, params)
    try:
        for delta in stream:
            answer += delta.text
            print(delta.text, end="", flush=True)
    except KeyboardInterrupt:
        stream.close()
    except SlipstreamError as error:
        messages.pop()
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return
    print()
    messages.append({"role": "assistant", "content": answer})


class Interleaved:
    """Prints several answers as they come, whole lines at a time, each with the number of its prompt."""

    def __init__(self) -> None:
        self.waiting: dict[int, str] = {}

    def add(self, number: int, text: str, last: bool) -> None:
        *lines, rest = (self.waiting.get(number, "") + text).split("\n")
        if last:
            lines.append(rest)
            rest = ""
        self.waiting[number] = rest
        for line in lines:
            print(f"[{number}] {line}", flush=True)


def missing(extra: str) -> list[str]:
    """The modules of an extra that are not installed."""
    from importlib.util import find_spec

    return [module for module in EXTRAS[extra] if find_spec(module) is None]


def need(name: str, extra: str, otherwise: str = "") -> None:
    """End the command if an extra is not installed."""
    lacking = missing(extra)
    if lacking:
        hint = f", {otherwise}" if otherwise else ""
        raise Stop(
            USAGE,
            f"slipstream {name} needs the extra \"{extra}\": pip install 'slipstream[{extra}]'{hint}"
            f" (not there: {', '.join(lacking)})",
        )


def devices() -> list[str]:
    if missing("engine"):
        return ["unknown without the extra engine"]
    import torch

    found = [f"cpu, {torch.get_num_threads()} threads"]
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        found.append(f"cuda:{number}, {about.name}, {about.total_memory / 2**30:.0f} GiB")
    return found


def judge(model: str) -> tuple[bool, str]:
    """Whether a model is supported as far as its configuration tells, and why not."""
    from transformers import AutoConfig

    from .actors.executor.gate import check_config
    from .protocol.errors import ModelNotSupported

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise Stop(USAGE, f"the configuration of {model!r} cannot be read: {error}") from None
    try:
        check_config(config)
    except ModelNotSupported as refused:
        return False, str(refused)
    return (
        True,
        f"supported by its configuration, type {config.model_type!r}; the weights are checked at load",
    )
