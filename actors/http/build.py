"""Makes the frontend of a service."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..options import HttpOptions
from ..text.prompts.prompts import load_texts, settled

if TYPE_CHECKING:
    from ...runtime.process.child import StartContext
    from .server import HttpFrontend


def build(context: StartContext) -> HttpFrontend:
    """The HTTP frontend of a service, from its options."""
    options = context.options_as(HttpOptions)
    context.phase("load tokenizer")
    texts = load_texts(Path(options.model), datetime.now, options.chat_template, options.chat_templates)
    context.phase("import")
    # Now, since what is imported then fills the gaps that reading leaves in memory: 6 MB less for a large vocabulary.
    from .server import HttpFrontend

    frontend = HttpFrontend(options, texts)
    frontend.facts |= settled(texts[1])
    return frontend
