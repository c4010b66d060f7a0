"""Which models are served, and why others are not.

Several families of transformers run over a paged cache without any error and produce wrong text: their
layers carry a state that is not keys and values, or attend in a way that a backend does not know of. So a
model must pass three tests, each of which gives its reason:

1. `check_config`: the properties of its configuration and class, before any weight is read;
2. `check_attention`: every layer calls the attention once;
3. `probe.probed`: its logits over the paged cache equal those of plain attention.
"""

from __future__ import annotations

from transformers import PreTrainedConfig, PreTrainedModel

from ....protocol.errors import ModelNotSupported
from ..cache.layout import KVLayout, record_attention
from .language_model import SERVED_AS_TEXT, language_model_class, language_model_config

SERVED_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})

OTHER_LAYER_TYPES = {
    "chunked_attention": "attend within fixed chunks of the context, which the attention does not know of",
    "linear_attention": "keep a recurrent state",
    "conv": "keep the state of a convolution",
    "hybrid": "keep a recurrent state beside keys and values",
}


def check_config(config: PreTrainedConfig) -> None:
    """Accept or refuse a model by its configuration alone; ModelNotSupported has the reason."""
    if config.is_encoder_decoder:
        raise refusal(config, "it is an encoder-decoder; decoder-only causal language models are served")
    model_class = causal_lm_class(config)
    text = language_model_config(config)

    for other in sorted(set(getattr(text, "layer_types", None) or ()) - SERVED_LAYER_TYPES):
        what = OTHER_LAYER_TYPES.get(other, "need more than keys and values in blocks")
        raise refusal(config, f"its layers of type {other!r} {what}")
    if getattr(model_class, "_is_stateful", False):
        raise refusal(config, "it keeps a recurrent state for each sequence beside keys and values")
    if not getattr(model_class, "_supports_attention_backend", False):
        raise refusal(
            config, f"{model_class.__name__} computes attention by itself and lets no other implementation in"
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


def check_attention(transformer: PreTrainedModel) -> KVLayout:
    """Every one of ``num_hidden_layers`` layers calls the attention once, in order; what they cache.

    A layer that does not call it mixes tokens in a way that the cache does not see.
    """
    config = transformer.config
    try:
        calls = record_attention(transformer)
    except ModelNotSupported as error:
        raise refusal(config, str(error)) from None
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise refusal(config, f"its forward pass fails with {type(error).__name__}: {error}") from error
    layers = [layer for layer, _ in calls]
    if layers != list(range(config.num_hidden_layers)):
        raise refusal(
            config,
            f"of its {config.num_hidden_layers} layers the attention was called by {layers}, "
            "and it must be called by each of them once",
        )
    return KVLayout(tuple(layout for _, layout in calls))


def refusal(config: PreTrainedConfig, reason: str) -> ModelNotSupported:
    return ModelNotSupported(f"model type {config.model_type!r} is not supported: {reason}")
