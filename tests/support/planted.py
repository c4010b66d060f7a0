"""Actors with a planted fault, and a service that has them. ``planted.py FACTORIES ARGUMENT...`` is
``slipstream serve ARGUMENT...`` with the factories of some actors replaced: test code, which no option reaches.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def fault_is_due() -> bool:
    """Whether the test asked for the fault; it happens once for each time that it asks."""
    try:
        os.unlink(os.environ["PLANTED_MARKER"])
    except FileNotFoundError:
        return False
    return True


def spinning_detokenizer(context: Any) -> Any:
    """Spins for ever in the middle of a message."""
    from slipstream.actors.text.detokenizer import build
    from slipstream.protocol.internal import Tokens

    actor = build(context)
    handle = actor.handlers[Tokens]

    def spin(message: Any, now: float) -> None:
        while fault_is_due():
            while True:
                pass
        handle(message, now)

    actor.handlers[Tokens] = spin
    return actor


def stalling_executor(context: Any) -> Any:
    """Its device finishes no step any more, while its loop goes on."""
    from slipstream.actors.executor.start.build import build
    from slipstream.protocol.events import Completed

    actor = build(context)
    handle = actor.handlers[Completed]
    stalled = False

    def stall(message: Any, now: float) -> None:
        nonlocal stalled
        stalled = stalled or fault_is_due()
        if not stalled:
            handle(message, now)

    actor.handlers[Completed] = stall
    return actor


def executor_that_is_no_fork(context: Any) -> Any:
    """Fails where it is forked from a spare, once the test asks for it."""
    from slipstream.actors.executor.start.build import build

    if os.path.exists(os.environ["PLANTED_MARKER"]) and "slipstream.runtime.process.spare" in sys.orig_argv:
        raise RuntimeError("planted: this is a fork")
    return build(context)


def executor_whose_device_is_lost(context: Any) -> Any:
    """Its device cannot be used any more, from when the test says so on."""
    from slipstream.actors.executor.start.build import build
    from slipstream.actors.executor.start.device_choice import DeviceLost

    if os.path.exists(os.environ["PLANTED_MARKER"]):
        raise DeviceLost("device 'cuda:0' served until now and cannot be used any more: planted")
    return build(context)


def printing_executor(context: Any) -> Any:
    """Prints a line."""
    from slipstream.actors.executor.start.build import build

    print("printed by a fork", flush=True)
    return build(context)


def unable_rank(context: Any) -> Any:
    """Cannot start."""
    raise MemoryError("this rank has no room")


def failing_rank(context: Any) -> Any:
    """Fails at a step."""
    from slipstream.actors.executor.start.build import build
    from slipstream.protocol.internal import Plan

    actor = build(context)
    handle = actor.handlers[Plan]

    def fail(plan: Any, now: float) -> None:
        if fault_is_due():
            raise ArithmeticError("this rank has failed")
        handle(plan, now)

    actor.handlers[Plan] = fail
    return actor


def launching_executor(context: Any) -> Any:
    """Launching a step takes as long as the step, but for a little, as on a GPU without a graph."""
    from slipstream.actors.executor.start.build import build
    from slipstream.protocol.internal import Plan

    actor = build(context)
    handle = actor.handlers[Plan]

    def launch(plan: Any, now: float) -> None:
        handle(plan, now)
        time.sleep(context.options["emulated_step_ms"] * 1e-3 - 0.0003)

    actor.handlers[Plan] = launch
    return actor


def catching_up_executor(context: Any) -> Any:
    """Launches each step for longer than it runs, until it has done 20 pieces of work between steps."""
    from slipstream.actors.executor.background_work import BackgroundWork
    from slipstream.actors.executor.start.build import build
    from slipstream.protocol.internal import Plan

    actor: Any = build(context)
    pieces = 20
    handle = actor.handlers[Plan]

    def piece() -> float | None:
        nonlocal pieces
        pieces -= 1
        if pieces < 0:
            return None
        time.sleep(0.02)
        return 0.02

    def launch(plan: Any, now: float) -> None:
        handle(plan, now)
        if actor.full_speed_at is None:
            time.sleep(0.03)

    actor.background_work = BackgroundWork(piece, actor.pipeline, catching_up=True)
    actor.full_speed_at, actor.wake_at = None, None
    actor.handlers[Plan] = launch
    return actor


def impatient_executor(context: Any) -> Any:
    """Takes a step to hang after a second if it takes ten times as long as expected, where a service waits for ten."""
    from slipstream.actors.executor import step_limit
    from slipstream.actors.executor.start.build import build

    step_limit.MIN_S = 1.0
    return build(context)


def poisoned_executor(context: Any) -> Any:
    """Dies by a signal of its own when a prompt has the token 666."""
    from slipstream.actors.executor.start.build import build
    from slipstream.protocol.internal import Plan

    actor = build(context)
    handle = actor.handlers[Plan]

    def die(plan: Any, now: float) -> None:
        handle(plan, now)
        if any(666 in array("i", join.tokens) for join in plan.joins):
            os.kill(os.getpid(), signal.SIGSEGV)

    actor.handlers[Plan] = die
    return actor


def poisoned_gateway(context: Any) -> Any:
    """Dies by a signal of its own when a client asks with the token 666."""
    from slipstream.actors.gateway.gateway import build
    from slipstream.protocol.events import ClientMessage

    return dies_of(
        build(context), ClientMessage, lambda arrived: getattr(arrived.message, "prompt", None) or ()
    )


def poisoned_by_texts_gateway(context: Any) -> Any:
    """Dies by a signal of its own when it takes in texts of a request that continues the token 666."""
    from slipstream.actors.gateway.gateway import build
    from slipstream.protocol.internal import Texts

    return dies_of(
        build(context),
        Texts,
        lambda texts: [token for opened in texts.opened for token in array("i", opened.context)],
    )


def poisoned_tokenizer(context: Any) -> Any:
    """Dies by a signal of its own when it is to look at a prompt with the token 666."""
    from slipstream.actors.text.tokenizer import build
    from slipstream.protocol.internal import Submit

    return dies_of(build(context), Submit, lambda submit: array("i", submit.prompt_ids))


def poisoned_scheduler(context: Any) -> Any:
    """Dies by a signal of its own when a request has the token 666."""
    from slipstream.actors.scheduler.scheduler import build
    from slipstream.protocol.internal import Enqueue

    return dies_of(build(context), Enqueue, lambda enqueue: array("i", enqueue.prompt))


def poisoned_detokenizer(context: Any) -> Any:
    """Dies by a signal of its own when a text continues the token 666."""
    from slipstream.actors.text.detokenizer import build
    from slipstream.protocol.internal import Tokens

    return dies_of(
        build(context),
        Tokens,
        lambda tokens: [token for opened in tokens.opened for token in array("i", opened.context)],
    )


def dies_of(actor: Any, kind: type, tokens_of: Callable[[Any], Iterable[int]]) -> Any:
    """The actor, which dies of a message of this kind in which there is the token 666."""
    handle = actor.handlers[kind]

    def die(message: Any, now: float) -> None:
        if 666 in tokens_of(message):
            os.kill(os.getpid(), signal.SIGSEGV)
        handle(message, now)

    actor.handlers[kind] = die
    return actor


def unready_executor(context: Any) -> Any:
    """Dies by a signal of its own while it starts, when the test asks for it; else writes what it is told."""
    from slipstream.actors.executor.start.build import build

    while fault_is_due():
        os.kill(os.getpid(), signal.SIGSEGV)
    Path(os.environ["PLANTED_MARKER"]).with_name("crashed").write_text(str(context.crashed))
    return build(context)


def waiting_tokenizer(context: Any) -> Any:
    """Is not ready as long as the test's marker is there."""
    from slipstream.actors.text.tokenizer import build

    return built_when_allowed(build, context)


def waiting_scheduler(context: Any) -> Any:
    """Is not ready as long as the test's marker is there."""
    from slipstream.actors.scheduler.scheduler import build

    return built_when_allowed(build, context)


def waiting_detokenizer(context: Any) -> Any:
    """Is not ready as long as the test's marker is there."""
    from slipstream.actors.text.detokenizer import build

    return built_when_allowed(build, context)


def built_when_allowed(build: Callable[[Any], Any], context: Any) -> Any:
    while os.path.exists(os.environ["PLANTED_MARKER"]):
        time.sleep(0.01)
    return build(context)


def evaluating_tokenizer(context: Any) -> Any:
    """Evaluates and unpickles for each request, as no actor may."""
    import pickle

    from slipstream.actors.text.tokenizer import build
    from slipstream.protocol.internal import Submit

    actor = build(context)
    handle = actor.handlers[Submit]

    def evaluate(message: Any, now: float) -> None:
        eval("1 + 1")
        pickle.loads(pickle.dumps(Path("/")))
        handle(message, now)

    actor.handlers[Submit] = evaluate
    return actor


def main(factories: dict[str, str], arguments: list[str]) -> int:
    import argparse

    from slipstream.runtime.log import configure, wants_json
    from slipstream.runtime.machine.run_directory import run_directory
    from slipstream.runtime.options.command_line import add_arguments
    from slipstream.runtime.options.sources import resolve

    from slipstream.options.serve import ServeOptions
    from slipstream.serving.banner import announce_service
    from slipstream.serving.running import run
    from slipstream.serving.service import service_specs

    parser = argparse.ArgumentParser()
    add_arguments(parser, ServeOptions)
    options = resolve(ServeOptions, arguments=vars(parser.parse_args(arguments))).options
    with run_directory() as directory:
        specs = [
            dataclasses.replace(spec, factory=factories.get(spec.name, spec.factory))
            for spec in service_specs(options, directory)
        ]
        configure(as_json=wants_json(options.log_format))
        return run(specs, options, directory, os.getppid(), announce_service)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), sys.argv[2:]))
