"""The result of a drill: for programs as JSON values, for people as a table."""

from __future__ import annotations

from typing import Any


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum, in milliseconds."""
    ordered = sorted(seconds) or [0.0]
    p50, p99 = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99))
    return {"p50": round(p50 * 1e3, 1), "p99": round(p99 * 1e3, 1), "max": round(ordered[-1] * 1e3, 1)}


def clean(result: dict[str, Any]) -> bool:
    """Whether nothing was lost, repeated, changed or left unfinished."""
    return not any(result[name] for name in ("lost", "duplicated", "changed", "unfinished"))


def summary(result: dict[str, Any]) -> str:
    """The result as a table for people."""
    lines = [
        f"{result['kills']} faults ({result['fault']}), {result['streams']} streams on the {result['device']} device"
        f"{'' if result['dtype'] is None else ' in ' + result['dtype']}"
        f"{', batch-invariant' if result['batch_invariant'] else ''}, {result['tokens']} tokens compared",
        f"  lost {result['lost']}, duplicated {result['duplicated']}, changed {result['changed']},"
        f" unfinished {result['unfinished']}",
        "  milliseconds without a token     p50     p99     max",
    ]
    for actor, found in [*result["by_actor"].items(), ("all", result)]:
        ms = found["recovery_ms"]
        lines.append(
            f"  {actor:<12} {found['kills']:>5} faults   {ms['p50']:>8.0f}{ms['p99']:>8.0f}{ms['max']:>8.0f}"
        )
    lines += [f"  {text}" for text in dict.fromkeys(result["errors"])]
    return "\n".join(lines)
