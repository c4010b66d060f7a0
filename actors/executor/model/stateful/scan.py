"""The selective scan of Mamba, from a state on.

The scans of transformers and of ``mamba-ssm`` begin from a state of zero: of a prompt in several chunks each would
forget those before it. The modules that call them are given this one instead.

A scan is a linear recurrence, ``state = decay * state + input`` for each token. Tokens are cut into as many blocks as a
block has tokens. All blocks are gone through side by side, each from a state of zero, and then the states at their ends
one after the other: for T tokens ``2 * sqrt(T)`` operations one after the other instead of T.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .module import RowStates

SCAN = "mamba_selective_scan"
"""What the modules of transformers call."""

TOKENS_AT_ONCE = 1024
"""A state for each token is held of no more than these."""


class Scan:
    """The scan of one module, as transformers calls it."""

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.states: RowStates | None = None
        """The states that the scan begins with; None: it has not been called."""

    def __call__(
        self,
        hidden_states: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        *,
        D: Tensor,
        z: Tensor,
        delta_bias: Tensor,
        delta_softplus: bool,
        return_last_state: bool,
        **other_ways: Any,
    ) -> tuple[Tensor, Tensor]:
        """``hidden_states``, ``dt`` and ``z`` [N, channels, T], ``A`` [channels, S], ``B`` and ``C`` [N, S, T], ``D``
        and ``delta_bias`` [channels]. Returns float32 [N, channels, T], and the state [N, channels, S] at its end.
        """
        assert self.states is not None
        assert delta_softplus
        assert return_last_state
        state = self.states.get_recurrent_state(self.layer)
        assert state is not None
        delta = F.softplus(dt.float() + delta_bias[:, None])
        inputs, B, C = hidden_states.float(), B.float(), C.float()
        state, outputs = state.float(), []
        for start in range(0, inputs.shape[2], TOKENS_AT_ONCE):
            some = slice(start, start + TOKENS_AT_ONCE)
            part = [one[..., some].movedim(2, 0) for one in (inputs, delta, B, C)]
            output, state = scan(part[0], part[1], part[2], part[3], A, state)
            outputs.append(output.movedim(0, 2))
        output = torch.cat(outputs, 2) + inputs * D[:, None]
        return output * F.silu(z.float()), state


def scan(
    inputs: Tensor, delta: Tensor, B: Tensor, C: Tensor, A: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The output [T, N, channels] and the last state [N, channels, S] of a scan that begins with ``state``.

    ``inputs`` and ``delta`` [T, N, channels], ``B`` and ``C`` [T, N, S], ``A`` [channels, S]; all float32.
    """
    tokens = len(inputs)
    length = isqrt(tokens - 1) + 1
    missing = -tokens % length

    def in_blocks(values: Tensor) -> Tensor:
        # Behind the end nothing comes and nothing decays: a time step of no length.
        return F.pad(values, (0, 0) * 2 + (0, missing)).unflatten(0, (-1, length))

    inputs, delta, B, C = (in_blocks(values) for values in (inputs, delta, B, C))
    decay = torch.exp(delta[..., None] * A)  # [blocks, length, N, channels, S]
    states = (delta * inputs)[..., None] * B[..., None, :]
    for token in range(1, length):
        states[:, token].addcmul_(decay[:, token], states[:, token - 1])
        decay[:, token].mul_(decay[:, token - 1])
    for block in range(len(states)):
        states[block].addcmul_(decay[block], state)
        state = states[block, -1]
    output = (states @ C[..., None])[..., 0]
    return output.flatten(0, 1)[:tokens], state.clone()


def going_on(module: nn.Module) -> Callable[..., Any]:
    """The forward pass of a module, with a scan that goes on from the state of its cache where its own does not."""
    function = inspect.unwrap(type(module).forward)
    if not isinstance(function, types.FunctionType) or SCAN not in function.__code__.co_names:
        return module.forward
    own = Scan(module.layer_idx)  # type: ignore[arg-type]
    # What it finds in its file is not changed for others, such as transformers' own decoding.
    forward = types.FunctionType(
        function.__code__,
        function.__globals__ | {SCAN: own},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    forward.__kwdefaults__ = function.__kwdefaults__

    def run(*given: Any, **named: Any) -> Any:
        own.states = next(one for one in (*given, *named.values()) if isinstance(one, RowStates))
        return forward(module, *given, **named)

    return run
