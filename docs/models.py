"""Writes the tables of ``models.md``: whether every type of model that transformers has is served, and why.

``python docs/models.py`` takes minutes, since it lays each of them out, without memory, and runs it over one token.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from slipstream.actors.executor.model import support
from slipstream.actors.executor.model.loading.language_model import SERVED_AS_TEXT, language_model_config
from slipstream.actors.executor.model.loading.load import model_on_meta
from slipstream.protocol.errors import ModelNotSupported
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

DOCUMENT = Path(__file__).with_name("models.md")
PART = re.compile(r"(<!-- types (?P<name>[\w-]+) -->\n).*?(<!-- end of (?P=name) -->)", re.DOTALL)
UNTOLD = "no model can be laid out from the defaults alone: what becomes of one shows when it is loaded"


def what_it_is(model_type: str) -> str:
    """The sort of a type that is served; ModelNotSupported has the reason if it is not."""
    config = CONFIG_MAPPING[model_type]()
    support.check_config(config)
    text = language_model_config(config)
    model_on_meta(config, torch.bfloat16)
    stateful = support.layer_types(text) & support.STATE_TYPES or support.causal_lm_class(config)._is_stateful
    return f"{'text' if text is not config else 'whole'}{', states' if stateful else ''}"


def reason_of(refused: ModelNotSupported) -> str:
    """Without what differs from one type to the next."""
    reason = str(refused).partition("is not supported: ")[2]
    for names, told in (
        (r"^\w+ computes attention by itself", "it computes attention by itself"),
        (r"^it has parts beside its language model \(.*?\)", "it has parts beside its language model"),
        (
            r"^of its \d+ layers.*",
            "some of its layers neither attend once nor keep a state that can be reached",
        ),
        (r"^\w+ (adds its own mask|lets tokens attend|is not given)", r"its attention \1"),
        (r"^its tokens attend to later tokens.*", "its attention lets tokens attend to later tokens"),
        (r".*uses cache of its own.*", "it keeps its states in a cache of its own"),
        (r"^its forward pass fails.*", UNTOLD),
    ):
        reason = re.sub(names, told, reason)
    return reason


def tables() -> dict[str, str]:
    sorts: dict[str, list[str]] = defaultdict(list)
    reasons: dict[str, list[str]] = defaultdict(list)
    for model_type in sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *SERVED_AS_TEXT}):
        try:
            sorts[what_it_is(model_type)].append(model_type)
        except ModelNotSupported as refused:
            reasons[reason_of(refused)].append(model_type)
        except (StrictDataclassError, KeyError, TypeError, ValueError, AttributeError, RuntimeError):
            reasons[UNTOLD].append(model_type)
    named = {
        "whole": "keys and values in blocks",
        "whole, states": "states, beside keys and values or alone",
        "text": "the text of a multimodal checkpoint",
        "text, states": "the same, with states",
    }
    served = [(told, str(len(sorts[sort])), listed(sorts[sort])) for sort, told in named.items()]
    refused = sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))
    return {
        "served": table(("what it keeps", "types", "`model_type`"), served),
        "refused": table(
            ("reason", "types", "`model_type`"),
            [(why, str(len(types)), listed(types)) for why, types in refused],
        ),
    }


def listed(types: list[str]) -> str:
    return ", ".join(f"`{model_type}`" for model_type in types)


def table(head: tuple[str, ...], rows: list[tuple[str, str, str]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def main() -> int:
    parts = tables()
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(
        PART.sub(lambda found: f"{found[1]}\n{parts[found['name']]}\n\n{found[3]}", text), encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
