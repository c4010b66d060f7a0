"""Make a model batch-invariant, or say why it cannot be.

A sum of floating point numbers depends on its order, and libraries choose the order by the shape of what they are
given. Here the order is a matter of the model alone: each part of it whose sums could depend on the rest of a step is
replaced by one in which they do not. Then the model is run in several ways, and every bit of the logits compared.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from .....protocol.errors import InvalidRequest
from ...attention import backend as attention
from ...triton_tools.compilation import compile_ahead
from ..comparison import COMPARED_TOKENS, STEPS, compared_tokens, paged_logits
from ..fused.decoder import TransformersMlp
from ..linear import GivenLinear
from ..paged_model import PagedModel
from ..quantization.linear import QuantizedLinear
from .on_cpu import BlockedLinear, FewRowsOperations, TransformersMlpByToken

RECURRENT = "its recurrent layers compute a chunk of a prompt in another way than single tokens"
EXPERTS = "a mixture of experts multiplies as many rows at once as want an expert"

SCHEDULES = (
    STEPS,
    [(COMPARED_TOKENS, 0), (0, COMPARED_TOKENS)],
    [(1, 1)] * COMPARED_TOKENS,
    [(1, COMPARED_TOKENS), *[(1, 0)] * (COMPARED_TOKENS - 1)],
    [(0, 3), (COMPARED_TOKENS - 2, 4), (2, COMPARED_TOKENS - 7)],
)
"""Each feeds the same two sequences. A step is how many tokens of each it computes."""


def make_invariant(model: PagedModel) -> None:
    """Replace in place what ``model`` is made of; InvalidRequest where a token's bits would depend on its step."""
    reason = "".join(list(reasons(model))[:1])
    if reason:
        raise refusal(reason)
    model.backend = attention.create(model.backend.name, batch_invariant=True)
    on_cpu = model.device.type == "cpu"
    for module in list(model.transformer.modules()):
        if on_cpu and hasattr(module, "operations"):
            module.operations = FewRowsOperations()  # type: ignore[assignment]
        for name, part in list(module.named_children()):
            setattr(module, name, replaced(part, on_cpu=on_cpu))
    model.batch_invariant = True


def replaced(part: nn.Module, *, on_cpu: bool) -> nn.Module:
    """The batch-invariant replacement of a part of a model. On a GPU the small operations are as they must be
    already."""
    if type(part) is nn.Linear:
        if on_cpu:
            return BlockedLinear(part)
        from ..products.fixed_order import fixed_order_linear  # triton comes with torch where there is a GPU

        return GivenLinear(part.weight, part.bias, fixed_order_linear)
    if type(part) is TransformersMlp and on_cpu:
        return TransformersMlpByToken(part.module)
    return part


def reasons(model: PagedModel) -> Iterator[str]:
    """Why a model cannot be batch-invariant, as far as it shows without running it."""
    on_cpu = model.device.type == "cpu"
    if model.stateful is not None:
        yield RECURRENT
    if model.unfused_because:
        yield f"its decoder stays as transformers has it: {model.unfused_because}"
    if any(isinstance(module, QuantizedLinear) for module in model.transformer.modules()):
        yield "the products of quantized weights differ from one number of rows to another"
    if on_cpu and getattr(model.config, "final_logit_softcapping", None):
        yield "its logits are bent by a function that torch computes otherwise at the ends of its threads' parts"
    if not on_cpu and any(isinstance(module, TransformersMlp) for module in model.transformer.modules()):
        yield EXPERTS
    if not on_cpu and model.backend.name == "torch":
        yield "torch's own attention chooses its kernels by the rows of a step; take --attention-backend triton"


def prove_invariant(model: PagedModel) -> None:
    """Run a few tokens in several ways; InvalidRequest if any bit of their logits differs."""
    tokens = compared_tokens(model)
    with torch.inference_mode():
        compile_ahead(model.device, lambda: [paged_logits(model, tokens, schedule) for schedule in SCHEDULES])
        expected = paged_logits(model, tokens, SCHEDULES[0])
        for schedule in SCHEDULES[1:]:
            different = (paged_logits(model, tokens, schedule) != expected).any(-1)
            if bool(different.any()):
                raise refusal(
                    f"cut into other steps, {int(different.sum())} of {different.numel()} tokens have other logits"
                )


def refusal(reason: str) -> InvalidRequest:
    return InvalidRequest(f"batch_invariant is not possible: {reason}; leave out --batch-invariant")
