"""Decides which models are served, and gives the reason for others.

Several families of transformers run over a paged cache without any error and produce wrong text: their
layers carry a state that nobody keeps for them, or attend in a way that a backend does not know of. So a
model must pass three tests, each of which gives its reason:

1. `check_config`: the properties of its configuration and class, before any weight is read;
2. `check_layers`: every layer calls the attention once, or keeps a state that can be reached;
3. `comparison.compared`: its logits over the paged cache equal those of plain attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import transformers
from transformers import Cache, PreTrainedConfig, PreTrainedModel

from ....protocol.errors import ModelNotSupported
from ..attention.transformers_hook import CHUNKED
from ..cache.kv_layout import NOTHING, KVLayout
from ..cache.state import StateLayout
from .attention_calls import CallRecorder, record_attention
from .loading.language_model import SERVED_AS_TEXT, language_model_class, language_model_config
from .quantization.scheme import UnknownQuantization, scheme_of
from .stateful.module import StatefulModule
from .stateful.recording import record_states

ATTENTION_TYPES = frozenset({"full_attention", "sliding_attention", CHUNKED})

STATE_TYPES = frozenset({"linear_attention", "conv", "hybrid", "hybrid_sliding"})
"""Types of layers that keep a state for each sequence, hybrid ones beside keys and values."""

TOKENWISE_TYPES = frozenset({"mlp", "moe"})
"""Types of layers that see one token at a time, and keep nothing."""

STATES_SINCE = "5.21"
"""The version of transformers from which the states of a layer are read and written through its cache alone."""

PICTURES = "cross_attention_layers"
"""What configurations call the layers that attend to pictures, which are left out of a language model."""

OTHER_LAYER_TYPES = {
    "indexed_attention": "choose by an index which tokens they attend to, which the attention does not know of",
}


def check_config(config: PreTrainedConfig) -> None:
    """Accept or refuse a model by its configuration alone; ModelNotSupported has the reason."""
    if config.is_encoder_decoder:
        raise refusal(config, "it is an encoder-decoder; decoder-only causal language models are served")
    model_class = causal_lm_class(config)
    text = language_model_config(config)
    try:
        scheme_of(config)
    except UnknownQuantization as reason:
        raise refusal(config, str(reason)) from None

    for other in sorted(layer_types(text) - ATTENTION_TYPES - STATE_TYPES - TOKENWISE_TYPES):
        what = OTHER_LAYER_TYPES.get(other, "need more than keys and values in blocks")
        raise refusal(config, f"its layers of type {other!r} {what}")
    # Families with a state are not marked so, and let it in nevertheless; whether they do shows when it is called.
    marked = getattr(model_class, "_supports_attention_backend", False) or layer_types(text) & STATE_TYPES
    if not marked:
        package = model_class.__module__.partition(".")[0]
        whose = "" if package == "transformers" else f", which the package {package!r} has registered,"
        raise refusal(
            config,
            f"{model_class.__name__}{whose} computes attention by itself and lets no other implementation in",
        )
    if keeps_state(text, model_class) and not hasattr(Cache, "get_conv_state"):
        raise refusal(
            config,
            f"its recurrent states can be reached from transformers {STATES_SINCE} on, and"
            f" {transformers.__version__} is installed",
        )
    if getattr(text, "alibi", False):
        raise refusal(config, "it adds a bias by distance (ALiBi) to the attention scores")
    if getattr(text, "use_bidirectional_attention", None):
        raise refusal(config, "its tokens attend to later tokens, so that it cannot be decoded step by step")


def causal_lm_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that generates text with this configuration; ModelNotSupported if there is none for text alone."""
    if language_model_config(config) is not config and config.model_type not in SERVED_AS_TEXT:
        raise refusal(
            config,
            f"it has parts beside its language model ({', '.join(config.sub_configs)}), and it is not known that "
            "text needs none of them",
        )
    found = language_model_class(config)
    if found is None:
        raise refusal(config, "transformers has no causal language model of this type")
    return found


def keeps_state(text: PreTrainedConfig, model_class: type[PreTrainedModel]) -> bool:
    """Whether layers of the language model keep recurrent or convolution state."""
    return bool(layer_types(text) & STATE_TYPES) or getattr(model_class, "_is_stateful", False)


def layer_types(text: PreTrainedConfig) -> set[str]:
    """The types of the layers of a language model; none where its configuration has no word for them."""
    return set(getattr(text, "layer_types", None) or ())


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of a model by what they keep: keys and values, or states."""

    kv_layout: KVLayout
    state_layout: StateLayout
    stateful: list[StatefulModule]
    """The modules that have these states."""


def check_layers(transformer: PreTrainedModel) -> Layers:
    """Every layer calls the attention once, in order, or keeps a state, or both; what they keep.

    A layer that does neither mixes tokens in a way that no cache sees, unless its type says that it mixes none.
    """
    config = transformer.config
    states, stateful = StateLayout(), []
    try:
        calls = record_attention(transformer)
        if layer_types(config) & STATE_TYPES or getattr(transformer, "_is_stateful", False):
            states, stateful = record_states(transformer, {"paged": None, "backend": CallRecorder()})
    except ModelNotSupported as error:
        raise refusal(config, str(error)) from None
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise refusal(config, f"its forward pass fails with {type(error).__name__}: {error}") from error
    attending = [layer for layer, _ in calls]
    types = getattr(config, "layer_types", None) or ()
    silent = {layer for layer, kind in enumerate(types) if kind in TOKENWISE_TYPES} | states.layers
    silent |= set(getattr(config, PICTURES, None) or ())
    expected = [
        layer for layer in range(config.num_hidden_layers) if layer in attending or layer not in silent
    ]
    if attending != expected:
        kept = f" and a state is kept by {sorted(states.layers)}" if states else ""
        raise refusal(
            config,
            f"of its {config.num_hidden_layers} layers the attention was called by {attending}{kept}; each that "
            f"keeps no state must call it once: {expected}",
        )
    layouts = dict(calls)
    kv_layout = KVLayout(tuple(layouts.get(layer, NOTHING) for layer in range(config.num_hidden_layers)))
    return Layers(kv_layout, states, stateful)


def refusal(config: PreTrainedConfig, reason: str) -> ModelNotSupported:
    return ModelNotSupported(f"model type {config.model_type!r} is not supported: {reason}")
