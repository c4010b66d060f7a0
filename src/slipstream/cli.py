"""The command line: finds a command, reads its options, and turns what goes wrong into a sentence and an exit code."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import NoReturn

from . import __version__
from .commands.common import Exit, Run
from .exit_codes import DONE, FAILED, INTERRUPTED, USAGE
from .protocol.printable import printable_lines
from .runtime.machine.standard_streams import open_missing, set_error_handlers

COMMANDS = {
    "serve": "start a service and run it until SIGTERM or Ctrl-C",
    "route": "put one address in front of several services, whose streams go on when one of them is lost",
    "deploy": "run several services of a model on a Ray cluster, behind one address",
    "generate": "answer prompts and print the answers as they come",
    "chat": "talk with a model",
    "batch": "answer a file of requests in OpenAI's batch format into another file",
    "bench": "measure how busy the device is kept, and how fast a service is",
    "drill": "kill actors of a service of your own while streams are open, and compare every token",
    "restart": "end an actor of a running service and start it again, while its requests go on",
    "top": "watch actors, queues and utilisation live",
    "trace": "write what a service just did as one timeline for Perfetto",
    "protocol": "print what a client in another language needs: messages, JSON Schema, golden vectors",
    "keys": "make the keys with which clients on other machines reach a service",
    "env": "show versions, extras and devices; with --model, whether it is supported and why",
}
"""Each command, the name of its module in ``commands``, and its line in the overview."""


class Parser(argparse.ArgumentParser):
    """Complains in one line, and says which option may have been meant."""

    def error(self, message: str) -> NoReturn:
        raise Exit(USAGE, f"{message} (see {self.prog} --help)")

    def read(self, arguments: list[str]) -> argparse.Namespace:
        found, unknown = self.parse_known_args(arguments)
        if unknown:
            from .runtime.options.values import did_you_mean

            word = unknown[0].partition("=")[0]
            for action in self._actions:
                if not action.option_strings and word == f"--{action.dest}":
                    self.error(f"{word} is given by its place alone: {self.prog} {action.metavar}")
            self.error(f"unknown argument {word}{did_you_mean(word, self._option_string_actions)}")
        return found


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 2 for a usage error, 3 if it could not start, 4 if it
    failed while running."""
    open_missing()
    set_error_handlers()
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name == "help" and rest:
        name, rest = rest[0], ["--help"]
    prog = f"slipstream {name}" if name in COMMANDS else "slipstream"
    try:
        if name in COMMANDS:
            summary = COMMANDS[name]
            parser = Parser(prog=prog, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False)
            declare: Callable[[argparse.ArgumentParser], Run] = import_module(
                f".commands.{name}", __package__
            ).declare
            run = declare(parser)
            code = run(parser.read(rest))
        else:
            code = overview(name)
        sys.stdout.flush()  # what it cannot take is told here, not when the interpreter ends
        return code
    except Exit as ended:
        print(f"{prog}: {printable_lines(str(ended))}", file=sys.stderr)
        return ended.code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        leave_unwritten()
        return DONE
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        leave_unwritten()
        print(f"{prog}: the output cannot be written: {error.strerror}", file=sys.stderr)
        return FAILED
    except Exception as error:
        from .protocol.errors import InvalidRequest, SlipstreamError

        if not isinstance(error, SlipstreamError):
            raise
        wrong = isinstance(error, InvalidRequest)
        text = printable_lines(str(error) if wrong else f"{type(error).__name__}: {error}")
        print(f"{prog}: {text}", file=sys.stderr)
        return USAGE if wrong else FAILED


NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What a full or broken disk says."""


def leave_unwritten() -> None:
    """Nobody takes what is left in the buffer."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def overview(name: str) -> int:
    """Show the commands when the first word is none of them."""
    if name == "--version":
        print(f"slipstream {__version__}")
    elif name in ("-h", "--help", "help"):
        print(
            "usage: slipstream COMMAND ...\n\nServes language models with asynchronous continuous batching.\n"
        )
        for known, summary in COMMANDS.items():
            print(f"  {known:<10} {summary}")
        print("\n'slipstream COMMAND --help' shows the options of a command.")
    else:
        from .runtime.options.values import did_you_mean

        raise Exit(USAGE, f"unknown command {name!r}{did_you_mean(name, COMMANDS)} (see slipstream --help)")
    return DONE
