"""Computes how many services a load needs, and whether one makes progress: the questions of Ray Serve, without Ray.

Serve sees no requests at a service, since tokens do not go through it. So each replica reports what its service counts
(``record_autoscaling_stats``), and ``services_needed`` is the policy by which Serve decides. Serve sends it to its
controller as it stands here: it uses nothing but this file.
"""

from __future__ import annotations

from typing import Any

from .protocol.errors import InvalidRequest

OPEN, CACHE = "requests_open", "kv_cache_usage_perc"
"""What a replica reports, by the names that the service has for it."""

MAX_CACHE = 0.8
"""Share of the cache that may be in use on average: beyond it, sequences soon give way to each other."""

SLOTS_IN_USE = 0.75
"""Share of the sequences that a service can run at once which is wanted open, where nothing else is stated: the rest is
for the time that another replica takes to start."""


def scaling(replicas: int, slots: int, wanted: dict[str, Any]) -> dict[str, Any]:
    """Serve's configuration of how many services there are: ``wanted``, and what follows from ``replicas``, which there
    are at least, and from the ``slots`` for sequences of each. ``InvalidRequest`` if there might be none.
    """
    found = {
        "min_replicas": replicas,
        "target_ongoing_requests": SLOTS_IN_USE * slots,
        "policy": {"policy_function": "slipstream.ray_scaling:services_needed"},
    } | wanted
    if found["min_replicas"] < 1:
        raise InvalidRequest(
            f"min_replicas={found['min_replicas']}; give at least 1: what waits for a service is at no service, so"
            " that nothing would start the first"
        )
    return found


def services_needed(context: Any) -> tuple[float, dict[str, Any]]:
    """A policy for Serve's ``AutoscalingConfig``: as many services as it takes for each to have
    ``target_ongoing_requests`` open and ``MAX_CACHE`` of its cache in use, whichever asks for more.

    Bounds and delays are Serve's. While nothing is reported nothing changes.
    """
    reported = context.aggregated_metrics or {}
    open_requests = reported.get(OPEN, {}).values()
    if not open_requests:
        return context.target_num_replicas, {}
    by_requests = sum(open_requests) / context.config.target_ongoing_requests
    by_cache = sum(reported.get(CACHE, {}).values()) / MAX_CACHE
    return max(by_requests, by_cache), {}


class Progress:
    """Follows what a service counts; one that has requests open and completes no step is stuck.

    The service's own supervisor ends what hangs and starts it again. What it cannot mend, as a GPU that hangs at each
    first step, shows here alone.
    """

    def __init__(self, stuck_after_s: float) -> None:
        """``stuck_after_s``: how long it may take, which is longer than the supervisor's own remedy."""
        self.stuck_after_s = stuck_after_s
        self.steps = -1.0
        self.forward_at = 0.0

    def take(self, counters: dict[str, float], now: float) -> str | None:
        """Why the service counts as stuck; None: it does not."""
        steps, open_requests = counters.get("steps", 0.0), counters.get(OPEN, 0.0)
        if steps != self.steps or not open_requests:
            self.steps, self.forward_at = steps, now
        stuck_s = now - self.forward_at
        if stuck_s < self.stuck_after_s:
            return None
        return (
            f"{open_requests:g} requests are open and no step was completed for {stuck_s:.0f} s; the limit is"
            f" {self.stuck_after_s:g} s"
        )
