"""The extras of the installation that commands need, and what is missing of them."""

from __future__ import annotations

from ..exit_codes import USAGE
from .common import Exit

EXTRAS = {
    "engine": ("torch", "transformers", "tokenizers", "safetensors", "jinja2", "numpy", "uvloop"),
    "top": ("rich",),
    "otel": ("opentelemetry",),
    "ray": ("ray",),
    "http": ("starlette", "uvicorn", "httptools", "prometheus_client"),
}
"""What each extra installs, by the names of the modules."""


def missing(extra: str) -> list[str]:
    """The modules of an extra that are not installed."""
    from importlib.util import find_spec

    return [module for module in EXTRAS[extra] if find_spec(module) is None]


def need(name: str, extra: str, otherwise: str = "") -> None:
    """End the command if an extra is not installed."""
    lacking = missing(extra)
    if lacking:
        hint = f", {otherwise}" if otherwise else ""
        raise Exit(
            USAGE,
            f"slipstream {name} needs the extra \"{extra}\": pip install 'slipstream[{extra}]'{hint}"
            f" (not there: {', '.join(lacking)})",
        )
