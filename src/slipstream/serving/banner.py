"""The banner in a service's log when it is ready, and the line that it writes for programs."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import msgspec

from .. import __version__
from ..actors.options import GatewayOptions
from ..protocol.limits import PROTOCOL
from ..runtime.log import logger
from ..runtime.supervision.children import Child
from ..runtime.supervision.supervisor import Supervisor


def announce_service(supervisor: Supervisor, seconds: float) -> dict[str, Any]:
    """The banner; returns the ready line."""
    executor = supervisor.children["executor"]
    gateway = supervisor.children["gateway"]
    facts = executor.facts
    served = msgspec.convert(gateway.spec.options, GatewayOptions)
    length = served.limits.max_model_len
    tokens = (facts["num_blocks"] - 1) * facts["block_size"]
    spare = supervisor.children.get("executor.spare")
    spent = Counter(spare.phases if spare is not None and executor.forked else {}) + Counter(executor.phases)
    phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in spent.items() if seconds >= 0.05)
    logger.info(f"slipstream {__version__} serves {served.model_name}")
    ranks = sum(child.spec.group == "executor" for child in supervisor.children.values())
    device = facts["device"] + (f" for the first of {ranks} ranks" if ranks else "")
    logger.info(
        f"  device {device}, dtype {facts.get('dtype', '-')}, attention {facts.get('attention', '-')},"
        f" pipeline depth {facts['depth']}, CUDA graphs {facts.get('graphs', '-')}"
    )
    if facts.get("decoder", "fused") != "fused":
        logger.info(f"  decoder as transformers has it, of several times as many kernels: {facts['decoder']}")
    if facts.get("exchange"):
        logger.info(f"  {facts['exchange']}")
    if facts.get("batch_invariant"):
        logger.info(
            "  batch-invariant: a token's logits have the same bits whatever else is computed with it"
        )
    if facts.get("weights"):
        logger.info(f"  {facts['weights']}")
    logger.info(
        f"  KV cache {facts['num_blocks']} blocks of {facts['block_size']} = {tokens} tokens,"
        f" {tokens / length:.1f} requests of {length} tokens"
        + (", a byte a number (FP8)" if facts.get("kv_cache_dtype") == "fp8" else "")
    )
    if spare is not None and spare.state == "ready":
        logger.info(f"  spare executor (pid {spare.process.pid}): {spare.memory()}")
    keeper = supervisor.children.get("weights.keeper")
    if keeper is not None and keeper.state == "ready":
        logger.info(f"  keeper of the weights (pid {keeper.process.pid}): {keeper.memory()}")
    if facts.get("adapters"):
        logger.info(f"  {facts['adapters']}")
    for line in facts.get("states", ()):
        logger.info(f"  {line}")
    ready = announce_addresses(supervisor, gateway, served.model_name)
    logger.info(f"ready in {seconds:.1f} s ({phases})")
    return ready


def announce_addresses(supervisor: Supervisor, front: Child, model: str) -> dict[str, Any]:
    """The lines of the banner that say where clients connect; returns the ready line. ``front``: whom they speak to."""
    logger.info(f"  endpoint {front.facts['endpoint']}")
    http = supervisor.children["http"].facts["url"] if "http" in supervisor.children else None
    if http is not None:
        logger.info(f"  http {http}")
    return {
        "endpoint": front.facts["endpoint"],
        "http": http,
        "pid": os.getpid(),
        "protocol": list(PROTOCOL),
        "model": model,
        "control": supervisor.status.endpoint,
    }
