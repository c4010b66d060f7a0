"""Kernels of other packages for modules that keep a state: which are there, and what they compute.

transformers puts a function of such a package in front of one of its own, wherever the package can be imported. On a
CPU, and where a model is laid out without memory, that function would fail, so transformers' own, in torch, is called.
So it is in float32, of which the packages' kernels multiply 11 bits of 24 (TF32): they would not compute what
transformers does.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

DEVICES = {"cuda"}
"""Types of the devices on which kernels run."""

HALF = frozenset({torch.bfloat16, torch.float16})
"""What kernels compute in. A state may be in float32 beside it."""

INSTALLED_AS = {"fla": "flash-linear-attention"}
"""The names by which packages are installed, by those that programs import, where more differs than hyphens."""


class Choice(NamedTuple):
    """The implementations that transformers has of one function of a model."""

    package: str
    """The package that has a kernel for it, by its name in a program."""
    kernel: Callable[..., Any] | None
    """None: the package is not there, cannot be imported, or has no such function."""
    plain: Callable[..., Any]
    """In torch."""


def choice_of(function: Any) -> Choice | None:
    """The implementations that transformers chose from when it made this function; None if it is any other object."""
    function = getattr(function, "chosen_by_inputs", function)
    if not inspect.isfunction(function):
        return None
    kept = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    if not kept.keys() >= {"package", "is_new_implementation", "torch_function"}:
        return None
    is_kernel = kept["is_new_implementation"].cell_contents
    return Choice(
        kept["package"].cell_contents, function if is_kernel else None, kept["torch_function"].cell_contents
    )


def choose_by_inputs(modules: Iterable[nn.Module]) -> None:
    """Have the code of these modules call kernels on `DEVICES` and in `HALF` alone, from now on."""
    for code in code_of(modules):
        for name, value in list(vars(code).items()):
            choice = choice_of(value)
            if choice is not None and choice.kernel is not None:
                setattr(code, name, chosen_by_inputs(choice.kernel, choice.plain))


def chosen_by_inputs(kernel: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def run(first: Tensor, *given: Any, **named: Any) -> Any:
        takes = first.device.type in DEVICES and any(
            isinstance(one, Tensor) and one.dtype in HALF for one in (first, *given, *named.values())
        )
        return (kernel if takes else plain)(first, *given, **named)

    run.chosen_by_inputs = kernel  # type: ignore[attr-defined]
    return run


def notes(modules: Iterable[nn.Module]) -> list[str]:
    """Whose kernels these modules have, and what would make them faster on a GPU; a sentence a line."""
    found = [choice_of(value) for code in code_of(modules) for value in vars(code).values()]
    choices = [choice for choice in found if choice is not None]
    used = {choice.package for choice in choices if choice.kernel is not None}
    missing = {choice.package for choice in choices} - used
    unusable = {package for package in missing if importlib.util.find_spec(package) is not None}
    lines = []
    if used:
        lines.append(
            f"kernels of these layers on a GPU are those of {installed_as(used)}, in bfloat16 and float16; in float32"
            " they are torch's"
        )
    if missing:
        others = "others" if used else "kernels of these layers"
        lines.append(f"{others} are torch's; on a GPU they are faster with {installed_as(missing)} installed")
    if unusable:
        lines.append(f"what is installed of {installed_as(unusable)} cannot be imported here")
    return lines


def code_of(modules: Iterable[nn.Module]) -> list[Any]:
    """The files of transformers that these modules are written in, as they were imported."""
    return [sys.modules[name] for name in {type(module).__module__ for module in modules}]


def installed_as(packages: set[str]) -> str:
    return " and ".join(sorted(INSTALLED_AS.get(name, name.replace("_", "-")) for name in packages))
