"""A causal language model of transformers over the paged cache; its decoder may be one that `fuse` has made of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ....protocol.errors import InvalidRequest
from ...checkpoint import max_model_len
from ..attention.backend import AttentionBackend
from ..attention.transformers_hook import scale_by_position, set_layer_indices
from ..cache.kv_layout import KVLayout
from ..cache.paged_batch import PagedBatch
from ..cache.state import StateLayout
from ..ranks.group import RankGroup
from ..ranks.layers import Division
from . import support
from .adapters.adapters import Adapters, Sublayers, projections_of
from .adapters.limits import AdapterLimits
from .adapters.tail import TailedLinear
from .findings import DecoderFindings, ModelFindings
from .stateful.package_kernels import choose_by_inputs
from .stateful.running import StatefulModules

CHANGING_ROPE_TYPES = ("dynamic", "longrope")
UNBOUNDED_LENGTH = 1 << 20
"""``max_model_len`` of a model that states no limit."""


class PagedModel:
    """A model whose every forward pass reads and writes the paged cache.

    ``transformer`` is the model of transformers. Its attention is `transformers_hook.transformers_attention`, or,
    in a decoder that `fuse` has made, the backend itself.
    """

    def __init__(
        self, transformer: PreTrainedModel, backend: AttentionBackend, findings: ModelFindings | None = None
    ) -> None:
        """``findings``: those about the same model before; None: it is run, to see what its layers keep."""
        self.transformer = transformer.eval().requires_grad_(False)
        self.backend = backend
        self.config: PreTrainedConfig = transformer.config
        self.device: torch.device = transformer.device
        self.dtype: torch.dtype = transformer.dtype
        self.max_model_len = max_model_len(self.config.to_dict()) or UNBOUNDED_LENGTH
        choose_by_inputs(transformer.modules())
        _freeze_rope(transformer)
        scale_by_position(transformer, here=True)
        set_layer_indices(transformer)
        # Some families search every input for this token, and so wait for the device, to warn of a lost mask.
        transformer.config.pad_token_id = None
        self.stateful: StatefulModules | None = None
        """Those of its modules that keep a state; None if it has none."""
        self.measure(None if findings is None else findings.kv_layout)
        self.group: RankGroup | None = None
        """The ranks of which each has a part of the model; None: it is whole."""
        self.divided: dict[str, Division] = {}
        """What this rank has of the layers that are divided, by their names in the checkpoint."""
        self.unfused_because = "it was not asked for"
        """Why the decoder is transformers' own; empty: ``fuse`` has replaced it."""
        self.decoder_findings: DecoderFindings | None = None
        """What it took to replace it; None if it was not, or that cannot be written down."""
        self.fused_projections: dict[str, Sublayers] = {}
        """The projections of a decoder that ``fuse`` has made, by name."""
        self.adapter_limits: AdapterLimits | None = None
        """For adapters in the weights of the decoder that ``fuse`` makes; None: they get no tails."""
        self.adapters: Adapters | None = None
        """Those that it has loaded; None: there is no room for any."""
        self.batch_invariant = False
        """A token's logits have the same bits whatever else is in its step."""
        self.weights_format = ""
        """What one should know of its weights, where they were quantized."""

    def measure(self, kv_layout: KVLayout | None = None) -> None:
        """Find out what its weights take and its layers keep: once it is there, and when a part of it is left.

        ``kv_layout``: what they keep, if that is known."""
        tensors = (*self.transformer.parameters(), *self.transformer.buffers())
        self.weight_bytes = sum(tensor.nbytes for tensor in tensors)
        if self.stateful is not None:
            self.stateful.undo()
        if kv_layout is not None:
            self.kv_layout, self.state_layout, self.stateful = kv_layout, StateLayout(), None
            return
        layers = support.check_layers(self.transformer)
        self.kv_layout, self.state_layout = layers.kv_layout, layers.state_layout
        try:
            self.stateful = (
                StatefulModules(layers.stateful, layers.state_layout) if layers.state_layout else None
            )
        except torch.OutOfMemoryError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise support.refusal(
                self.config,
                f"its recurrent layers cannot be run by themselves: {type(error).__name__}: {error}",
            ) from error

    def take_adapters(self, count: int, max_rank: int) -> Adapters:
        """Allocate memory for ``count`` adapters of ranks up to ``max_rank``; InvalidRequest where none are served."""
        if self.stateful is not None:
            raise InvalidRequest(
                "adapters are not served for models with recurrent layers, which run a step in parts; leave out --lora"
            )
        projections = projections_of(self.transformer) if self.unfused_because else self.fused_projections
        try:
            self.adapters = Adapters(self.transformer, projections, self.divided, count, max_rank)
        except torch.OutOfMemoryError as error:
            raise InvalidRequest(
                f"{count} adapters of ranks up to {max_rank} do not fit beside the weights; lower --max-loras or"
                " --max-lora-rank"
            ) from error
        if not self.unfused_because:
            getattr(self.transformer, self.transformer.base_model_prefix).adapters = self.adapters
        return self.adapters

    @property
    def findings(self) -> ModelFindings:
        """The findings about this model that a later process with the same model need not make again."""
        return ModelFindings(None if self.state_layout else self.kv_layout, self.decoder_findings)

    @property
    def has_tails(self) -> bool:
        """Whether adapters are written into its weights."""
        return any(isinstance(module, TailedLinear) for module in self.transformer.modules())

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def uncapturable(self) -> str:
        """Why steps on a GPU cannot be captured into CUDA graphs; empty: any can."""
        if not self.backend.capturable:
            return f"the attention backend {self.backend.name!r} asks the host for the lengths of rows"
        return self.asks_host

    @property
    def asks_host(self) -> str:
        """Why no step of the model can be captured, whichever backend attends; empty: nothing asks the host.

        The grouped matrix product of a mixture of experts asks the host for the size of the groups, except
        in bfloat16. Expert weights are the only parameters of three dimensions beside those of convolutions.
        """
        experts = any(
            parameter.dim() == 3
            for module in self.transformer.modules()
            if not isinstance(module, nn.Conv1d)
            for parameter in module.parameters(recurse=False)
        )
        if experts and self.dtype != torch.bfloat16:
            return f"a mixture of experts in {self.dtype} asks the host for their shares; it does not in bfloat16"
        if self.stateful is not None and self.stateful.host_read:
            return f"its recurrent layers ask the host ({self.stateful.host_read}) in each step"
        return ""

    @torch.inference_mode()
    def forward(
        self, input_ids: Tensor, positions: Tensor, batch: PagedBatch, logits_index: Tensor | None
    ) -> Tensor:
        """Run one step: ``input_ids`` and ``positions`` int64 [T], ``logits_index`` int64 [S] into them; None: all.

        Returns logits [S, vocab] in the model's dtype. Waits for nothing on the device.
        """
        if self.adapters is not None:
            ids = batch.adapter_ids
            self.adapters.begin(torch.zeros_like(input_ids, dtype=torch.int32) if ids is None else ids)
        if self.stateful is None:
            return self.logits(input_ids, positions, batch, logits_index)
        self.stateful.begin(batch)
        try:
            return self.logits(input_ids, positions, batch, logits_index)
        finally:
            self.stateful.end()

    def logits(
        self, input_ids: Tensor, positions: Tensor, batch: PagedBatch, logits_index: Tensor | None
    ) -> Tensor:
        how: dict[str, Any] = {}
        if logits_index is not None:
            # A decoder of ours picks them within its last layer, which more than all tokens would only make longer.
            within = not self.unfused_because and len(logits_index) <= len(input_ids)
            how["logits_index" if within else "logits_to_keep"] = logits_index
        output = self.transformer(
            input_ids=input_ids[None],
            position_ids=positions[None],
            use_cache=False,
            paged=batch,
            backend=self.backend,
            positions=positions,
            **how,
        )
        return output.logits[0]


def _freeze_rope(transformer: PreTrainedModel) -> None:
    """Keep the rotary frequencies that the model starts with.

    Some types choose them anew in each forward pass, by the greatest position in it: one long request would
    change the text of all others in its step. `max_model_len` ends where the choice would change.
    """

    def frozen(rope_type: str) -> str:
        return "default" if rope_type in CHANGING_ROPE_TYPES else rope_type

    for module in transformer.modules():
        kind: Any = getattr(module, "rope_type", None)
        if isinstance(kind, str):
            module.rope_type = frozen(kind)  # type: ignore[assignment]
        elif isinstance(kind, dict):
            module.rope_type = {layer_type: frozen(own) for layer_type, own in kind.items()}  # type: ignore[assignment]
