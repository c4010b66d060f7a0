"""The tokenizer in a model's folder, read with ``tokenizers`` alone; torch and transformers are not imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from ....protocol.errors import ModelNotSupported
from ...checkpoint import read_json

OTHER_FILES = {
    "tekken.json": "mistral-common",
    "tokenizer.model.v3": "mistral-common",
    "tokenizer.model": "sentencepiece",
    "spiece.model": "sentencepiece",
    "tiktoken.model": "tiktoken",
    "vocab.json": "",
}
"""Other forms in which models bring their vocabulary, and the package that transformers converts each with."""


def load_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer in ``tokenizer.json``, with what its configuration says of its special tokens."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelNotSupported(no_tokenizer(folder))
    os.environ.setdefault(
        "TOKENIZERS_PARALLELISM", "false"
    )  # one text at a time: a pool would only take memory
    try:
        tokenizer = read_tokenizer(path)
    except Exception as error:  # the library raises bare Exception
        raise ModelNotSupported(f"{path} cannot be read as a tokenizer: {error}") from None
    tokenizer.no_truncation()  # some files carry the settings of their training
    tokenizer.no_padding()
    named = special_tokens(folder)
    known = [text for text in named.values() if tokenizer.token_to_id(text) is not None]
    tokenizer.add_special_tokens(known)  # of tokens that have an id already, this only marks them
    add_ends(tokenizer, read_json(folder / "tokenizer_config.json"), named)
    return tokenizer


BPE_SETTINGS = (
    *("unk_token", "continuing_subword_prefix", "end_of_word_suffix"),
    *("fuse_unk", "byte_fallback", "ignore_merges"),
)
"""The settings that hold when a model is used. ``dropout``, which leaves out merges by chance, is for its training."""


def read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a file, as ``Tokenizer.from_file`` returns it, in a third less of memory for a large vocabulary.

    The library strews what it keeps among what it needs while it reads, which leaves holes that no ``malloc_trim``
    gives back. So pairs and tokens, which are nearly all of a file, are read here and handed over.
    """
    written = msgspec.json.decode(path.read_bytes())
    model = written["model"]
    if model.get("type") != "BPE":
        return tokenizers.Tokenizer.from_file(str(path))
    vocabulary, merges, added = model["vocab"], model["merges"], written["added_tokens"]
    bare = written | {"added_tokens": [], "model": model | {"vocab": {}, "merges": []}}
    tokenizer = tokenizers.Tokenizer.from_str(msgspec.json.encode(bare).decode())
    pairs: list[Any] = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in merges]
    settings = {name: model[name] for name in BPE_SETTINGS if model.get(name) is not None}
    tokenizer.model = BPE(vocabulary, pairs, **settings)
    tokenizer.add_tokens(
        [
            tokenizers.AddedToken(**{name: value for name, value in token.items() if name != "id"})
            for token in added
        ]
    )
    return tokenizer


def no_tokenizer(folder: Path) -> str:
    """Advice for a folder without a ``tokenizer.json``."""
    found = next((name for name in OTHER_FILES if (folder / name).is_file()), None)
    if found is None:
        return f"{folder} has no tokenizer.json, nor any other tokenizer: copy the one of the model that it was made of"
    package = OTHER_FILES[found]
    install = f"pip install {package}, then " if package else ""
    return (
        f"{folder} has no tokenizer.json, only {found}, which is not read; {install}make one in Python with"
        f" transformers: AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
    )


def add_ends(tokenizer: tokenizers.Tokenizer, config: dict[str, Any], named: dict[str, str]) -> None:
    """Put before and after a text what the model's configuration says, where the file says otherwise.

    ``add_bos_token`` and ``add_eos_token`` are the publisher's own settings; without them the file's rule holds.
    """
    bare = tokenizer.encode("a", add_special_tokens=False).tokens
    whole = tokenizer.encode("a", add_special_tokens=True).tokens
    at = next(i for i in range(len(whole) + 1) if whole[i : i + len(bare)] == bare)  # bare may be nothing
    ends = {"bos": whole[:at], "eos": whole[at + len(bare) :]}
    wanted = dict(ends)
    for end in ends:
        setting, token = config.get(f"add_{end}_token"), named.get(f"{end}_token")
        if setting is False:
            wanted[end] = []
        elif setting is True and token is not None and token not in ends[end]:
            if tokenizer.token_to_id(token) is None:
                raise ModelNotSupported(
                    f"tokenizer_config.json puts its {end}_token {token!r:.80} beside each text, and the vocabulary has"
                    " no such token"
                )
            wanted[end] = [token]
    if wanted != ends:
        tokens = wanted["bos"] + wanted["eos"]
        tokenizer.post_processor = TemplateProcessing(
            single=[*wanted["bos"], "$A", *wanted["eos"]],
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(tokens)],
        )


def special_tokens(folder: Path) -> dict[str, str]:
    """The named special tokens, such as ``bos_token``, as chat templates know them."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        config = read_json(folder / name)
        extra = config.get("extra_special_tokens")
        for key, value in [*config.items(), *(extra.items() if isinstance(extra, dict) else ())]:
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found
