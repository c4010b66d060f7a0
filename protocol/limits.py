"""Every bound of the protocol in one place. What exceeds one is refused, never cut."""

from __future__ import annotations

import msgspec

PROTOCOL = (1, 0)
"""Major and minor version. A peer of another major version is refused; a minor version only adds."""

MAX_FRAME_BYTES = 16 * 1024 * 1024
"""Largest frame that any socket accepts: three times a prompt of ``MAX_ITEMS`` token ids, of five bytes each."""

MAX_INTERNAL_FRAME_BYTES = 2 * MAX_FRAME_BYTES
"""The limit between actors: what a client may just send has to fit, with what is added on the way."""

MAX_ITEMS = 1_000_000
"""Longest array inside a frame of a client. A prompt as token ids is one, and the longest contexts of models have a
million."""

MAX_KEYS = 16_384
"""Largest map inside a frame of a client. One of a million keys takes the gateway seconds, in which all others wait."""

MAX_CONTAINERS = 100_000
"""Most arrays and maps inside a frame of a client: a dozen for each of ``MAX_MESSAGES`` messages."""

MAX_ALL_ITEMS = 2 * MAX_ITEMS
"""Most items of all arrays and maps together inside a frame of a client: a long prompt, and what was received of it."""

MAX_DEPTH = 32
"""Deepest nesting of arrays and maps in a value of any type: more than schemas and calls have, and far below what
recursion in Python allows."""

MAX_MESSAGES = 8192
"""Most messages of one conversation: a template is rendered for all of them at once."""

MAX_TOOLS = 1024
"""Most ``tools`` of one request: eight times as many as OpenAI takes."""

MAX_REQUEST_ID_CHARS = 128
"""Longest ``id`` of a request."""

MAX_STOP_STRINGS = 16
"""Most texts in ``stop``: four times as many as OpenAI takes."""

MAX_STOP_CHARS = 256
"""Characters of the longest text in ``stop``: the beginning of one is held back until it is known to be none."""

MAX_STOP_TOKEN_IDS = 64
"""A sequence slot holds this many stop tokens on the device, the model's own among them."""

MAX_LOGIT_BIAS = 1024
"""Most tokens that one request has a bias for; a sequence slot holds this many on the device."""

MAX_ABS_LOGIT_BIAS = 100.0
"""Largest ``logit_bias`` of a token, up or down: OpenAI's limit, which decides for or against a token in any model."""

MAX_CHOICES = 64
"""Largest ``n``."""

MAX_CACHE_SALT_CHARS = 256
"""Longest ``cache_salt``."""

MAX_ADAPTER_NAME_CHARS = 256
"""Longest name of an adapter."""

MAX_LOGPROBS = 20
"""Largest ``logprobs`` and ``prompt_logprobs``: OpenAI's limit."""

UNLIKELIEST = -9999.0
"""Told in place of a lower logprob, and of one that is no finite number, as where the model's own weights are none:
JSON has no other. It is OpenAI's number for a token that cannot be."""

MAX_PROMPT_LOGPROBS = 100_000
"""Most logprobs of one prompt: its tokens times ``1 + prompt_logprobs``."""

PROMPT_LOGPROBS_PER_STEP = 256
"""Most tokens of prompts whose logprobs one step reports: their logits take as much memory as 256 rows."""

MAX_JOINED_TOKENS = 1 << 20
"""A plan takes in no further sequence once those that join have this many tokens: it has to fit into a frame, and its
step into the inputs on the device. Those that find their prefix in the cache cost no budget."""

MAX_GRAMMAR_BYTES = 32_768
"""Most bytes of UTF-8 in a ``json_schema`` as JSON text, a ``regex``, or all strings of a ``choice``."""

MAX_CHOICE_STRINGS = 1000
"""Most strings of a ``choice``."""

MAX_SEED = 2**63 - 1
"""Largest ``seed``: that of a signed integer of 64 bits."""

MAX_DEADLINE_S = 86_400.0
"""Longest ``deadline_s``: a day."""

MAX_IPC_PATH_BYTES = 107
"""``sun_path`` of a Unix socket on Linux, less its final zero."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one service; sent to the client in ``welcome``."""

    max_model_len: int
    """Most tokens of prompt and answer together."""
    vocab_size: int
    """The number of token ids of the model; they count from 0."""
    max_prompt_bytes: int
    """Most bytes of UTF-8 in a text prompt or a conversation."""
    max_stop_token_ids: int = MAX_STOP_TOKEN_IDS
    """Most ``stop_token_ids`` of a request; the model's own take the rest of the places."""
    max_frame_bytes: int = MAX_FRAME_BYTES
    """Most bytes of a frame."""
    max_queued_requests: int = 1024
    """Most requests that the service holds at once, running ones included."""
