"""Keeps transformers from importing two parts of torch that are never used here: a quarter of the start of an executor.

The two are torch's compiler and its tensors divided over several processes. The modules of transformers import both at
once: they mark a few functions for the compiler, and ask of tensors whether they are divided.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from importlib.util import find_spec
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"

NEEDED = "torch._dynamo._trace_wrapped_higher_order_op"
"""A part of the compiler's package that stands by itself: transformers' masks have a class of it."""


def skip_imports() -> None:
    """Skip these imports; to be called before any module of transformers that has models is imported."""
    import transformers.utils

    if "transformers.modeling_utils" in sys.modules:
        return  # it has done so
    delay_compiler()
    # Divided tensors are its own way to several processes, which it leaves alone where torch cannot divide them.
    for module in (transformers.utils, transformers.utils.import_utils):
        if hasattr(module, "is_torch_distributed_available"):
            module.is_torch_distributed_available = no_divided_tensors  # type: ignore[attr-defined]


def no_divided_tensors() -> bool:
    return False


def delay_compiler() -> None:
    """Let the compiler be imported when something asks for more of it than to mark a function."""
    import torch

    spec = find_spec(COMPILER)
    if COMPILER in sys.modules or spec is None or spec.loader is None:
        return
    module = DelayedCompiler(COMPILER)
    module.__spec__, module.__loader__, module.__package__ = spec, spec.loader, COMPILER
    module.__file__, module.__path__ = spec.origin, list(spec.submodule_search_locations or ())
    sys.modules[COMPILER] = module
    torch._dynamo = module  # type: ignore[attr-defined]
    with suppress(ImportError):  # another version may have it elsewhere
        importlib.import_module(NEEDED)
    del module.__path__  # an import of another part looks for it, and gets the whole


class NoRules:
    """Stands in for the compiler's rules about what to trace, where nothing is compiled. Ranks that meet have it forget
    them."""

    @staticmethod
    def clear_lru_cache() -> None:
        pass


class DelayedCompiler(ModuleType):
    """``torch._dynamo`` until it is needed: the marks on functions mark nothing, since nothing is compiled.

    Any other attribute makes it the real one, in its place.
    """

    trace_rules = NoRules

    @staticmethod
    def disable(fn: Any = None, *_: Any, **__: Any) -> Any:
        """The compiler is to leave the function alone."""
        return unmarked if fn is None else fn

    @staticmethod
    def allow_in_graph(fn: Any) -> Any:
        """The compiler is to call the function without looking into it."""
        return fn

    @staticmethod
    def assume_constant_result(fn: Any) -> Any:
        """The compiler is to call the function once."""
        return fn

    def __getattr__(self, name: str) -> Any:
        spec = self.__spec__
        assert spec is not None
        assert spec.loader is not None
        if name.startswith("__") and name != "__path__":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__class__ = ModuleType  # type: ignore[assignment]
        self.__path__ = list(spec.submodule_search_locations or ())
        spec.loader.exec_module(self)
        return getattr(self, name)


def unmarked(fn: Any) -> Any:
    return fn
