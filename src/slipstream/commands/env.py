"""``slipstream env``: show versions, extras and devices; with --model, whether it is supported and why."""

from __future__ import annotations

import argparse

from .. import __version__
from .common import DONE, EXTRAS, FAILED, USAGE, Run, Stop, missing, need


def declare(parser: argparse.ArgumentParser) -> Run:
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

    from ..actors.executor.gate import check_config
    from ..protocol.errors import ModelNotSupported

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
