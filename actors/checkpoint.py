"""A model's folder, and what its files say of the length and the end of texts.

Everyone who needs to know asks here: the service before it starts anything, the actors of text, and the executor.
Neither torch nor transformers is imported.
"""

from __future__ import annotations

import json
import math
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..protocol.errors import InvalidRequest, ModelNotSupported

SERVED_FILES = ("*.json", "*.safetensors", "*.jinja")
"""What is fetched of a model on the Hub. Pickled weights are not: a pickle can run any code."""

PICKLES = (".bin", ".pt", ".pth")
"""Ends of the names of files with pickled weights."""

HUB_TIMEOUT_S = 3.0
"""How long the Hub may take to accept a connection before it counts as out of reach."""

LENGTH_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "n_ctx",
    "model_max_length",
    "context_length",
)
"""What configurations call the number of positions, the usual name first."""

CONFIG_DEFAULTS: dict[str, dict[str, int]] = {
    "gemma3_text": {"vocab_size": 262_208, "max_position_embeddings": 131_072},
    "gemma3n_text": {"vocab_size": 262_400, "max_position_embeddings": 32_768},
    "gemma4_text": {"vocab_size": 262_144, "max_position_embeddings": 131_072},
    "llama4_text": {"vocab_size": 202_048, "max_position_embeddings": 131_072},
}
"""By the type of a decoder, what published configurations leave to the defaults that transformers has for it."""

LARGEST_SIZES = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), 2048),
    **dict.fromkeys(("hidden_size", "n_embd", "intermediate_size"), 1 << 20),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim"), 1 << 14),
    "vocab_size": 1 << 24,
    **dict.fromkeys(LENGTH_NAMES, 1 << 31),
}
"""By name in a configuration, the largest size that is believed: ten times that of any model that there is."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder with a model, and its ``config.json``."""

    folder: Path
    config: Mapping[str, Any]

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary that the logits have; ModelNotSupported if the configuration states none."""
        found = decoder_config(self.config).get("vocab_size")
        if not isinstance(found, int):
            raise ModelNotSupported(
                f"{self.folder / 'config.json'} has no vocab_size; is it a causal language model?"
            )
        return found

    @property
    def max_model_len(self) -> int | None:
        """As ``max_model_len``."""
        return max_model_len(self.config)

    def check_weights(self) -> None:
        """InvalidRequest when the folder has no weights that are read, that is safetensors files."""
        files = safetensors_in(self.folder)
        for file in files:
            if not file.is_file():  # to read a pipe is to wait for ever
                raise InvalidRequest(f"model {str(self.folder)!r}: {file.name} is no file")
        if files:
            return
        looked_for = "model.safetensors or model.safetensors.index.json"
        pickles = sorted(file.name for file in self.folder.iterdir() if file.suffix in PICKLES)
        if pickles:
            raise InvalidRequest(
                f"model {str(self.folder)!r}: the folder has no {looked_for}, and {pickles[0]} is not read, since a "
                "pickle can run any code; load it where you trust it and save it with save_pretrained"
            )
        raise InvalidRequest(
            f"model {str(self.folder)!r}: the folder has no weights; looked for {looked_for}"
        )

    def eos_token_ids(self) -> list[int]:
        """Every token that ends an answer, ascending, from each of the files that may name one or several.

        Ids beyond the model's vocabulary are left out.
        """
        sources = (
            self.config,
            decoder_config(self.config),
            read_json(self.folder / "generation_config.json"),
        )
        found: set[int] = set(self._eos_of_tokenizer())
        for source in sources:
            given = source.get("eos_token_id")
            ids = given if isinstance(given, list) else [] if given is None else [given]
            if not all(
                isinstance(token, int)
                and not isinstance(token, bool)
                and abs(token) <= LARGEST_SIZES["vocab_size"]
                for token in ids
            ):
                raise ModelNotSupported(
                    f"{self.folder} names {given!r:.80} as eos_token_id; expected a number or a list of numbers"
                )
            found.update(ids)
        size = decoder_config(self.config).get("vocab_size")
        return sorted(token for token in found if 0 <= token < (size if isinstance(size, int) else math.inf))

    def _eos_of_tokenizer(self) -> Iterator[int]:
        """The id of the token that ``tokenizer_config.json`` names ``eos_token``."""
        named = read_json(self.folder / "tokenizer_config.json")
        text = named.get("eos_token")
        text = text.get("content") if isinstance(text, dict) else text
        if not isinstance(text, str):
            return
        added = named.get("added_tokens_decoder")  # ids as text, each with its token
        try:
            if isinstance(added, dict):
                tokens = [token | {"id": int(number)} for number, token in added.items()]
            else:
                tokens = read_json(self.folder / "tokenizer.json").get("added_tokens") or []
            yield from [int(token["id"]) for token in tokens if token.get("content") == text]
        except (TypeError, ValueError, LookupError, AttributeError):
            raise ModelNotSupported(
                f"the added tokens in {self.folder} are no tokens by their ids; take the tokenizer's files as they were"
            ) from None


def open_checkpoint(model: str, files: Sequence[str] = SERVED_FILES) -> Checkpoint:
    """Find a model by the path of its folder or its name on the Hugging Face Hub, and read its configuration.

    With a folder nothing is fetched from a network; of a name, what matches ``files`` is. InvalidRequest when there
    is no such model, ModelNotSupported when its configuration cannot be read.
    """
    folder = find_folder(model, files)
    if not (folder / "config.json").is_file():
        raise InvalidRequest(f"model {model!r}: the folder has no config.json")
    config = read_json(folder / "config.json")
    check_sizes(decoder_config(config))
    return Checkpoint(folder, config)


def find_folder(model: str, files: Sequence[str] = SERVED_FILES) -> Path:
    """The local folder of a model, as ``open_checkpoint``; a model on the Hub is fetched if it is not here yet."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise InvalidRequest(f"model {model!r} is a file; give the folder that it lies in")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", model):
        raise InvalidRequest(f"model {model!r}: there is no such folder")
    from huggingface_hub import snapshot_download  # not for local folders: it costs memory and time

    try:
        found = snapshot_download(model, allow_patterns=list(files), local_files_only=not hub_answers())
    except Exception as error:  # the hub client raises its own and its transport's kinds
        reason = (str(error).splitlines() or [""])[0]
        raise InvalidRequest(
            f"model {model!r}: there is no such folder, and the hub does not give it"
            f" ({type(error).__name__}: {reason}); check the name and the network"
        ) from None
    return Path(found)


def hub_answers() -> bool:
    """Without a network the Hub's library tries again for half a minute, even for what is in its cache."""
    from urllib.request import getproxies  # 20 ms, which actors whose model is a folder need not wait for

    if getproxies():
        return True
    from huggingface_hub import constants

    try:
        address = urlsplit(constants.ENDPOINT)
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=HUB_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def safetensors_in(folder: Path) -> list[Path]:
    """The safetensors files of a folder, in the order of their names. Hidden ones are none: macOS puts a
    ``._model.safetensors`` of its own beside each file that it copies elsewhere."""
    return sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("."))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one if there is no such file. ModelNotSupported if it holds anything else."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelNotSupported(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ModelNotSupported(f"{path} holds a {type(found).__name__}; expected an object")
    return found


def decoder_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a model's configuration that describes its decoder."""
    text = config.get("text_config")
    found = text if isinstance(text, Mapping) else config
    defaults = CONFIG_DEFAULTS.get(str(found.get("model_type")))
    return found if defaults is None else {**defaults, **found}


def check_sizes(decoder: Mapping[str, Any]) -> None:
    """ModelNotSupported for sizes that no model has: building such a one would end for lack of time or memory."""
    for name, most in LARGEST_SIZES.items():
        size = decoder.get(name)
        if isinstance(size, int) and not 1 <= size <= most:
            raise ModelNotSupported(f"config.json states {name}={size}; it must be from 1 to {most}")


def max_model_len(config: Mapping[str, Any]) -> int | None:
    """Positions that the model was made for, prompt and completion together; None if it does not say.

    Beyond the original length of the "longrope" kind of rotary embedding, the frequencies change with the longest
    text of a batch, so one request would change another's text: such a model is served up to that length.
    """
    text = decoder_config(config)
    stated = next((text[name] for name in LENGTH_NAMES if isinstance(text.get(name), int)), None)
    lengths = [] if stated is None else [stated]
    for rope in rope_parameters(text):
        if rope.get("rope_type", rope.get("type")) == "longrope":
            name = "original_max_position_embeddings"
            original = rope.get(name) or text.get(name)
            lengths += [original] if isinstance(original, int) else []
    return min(lengths, default=None)


def rope_parameters(text: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The parameters of the rotary embedding: one set, or one for each layer type."""
    parameters = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(parameters, Mapping):
        raise ModelNotSupported(
            f"config.json states {parameters!r:.80} as rope_parameters; expected an object"
        )
    return [value for value in parameters.values() if isinstance(value, Mapping)] or [parameters]
