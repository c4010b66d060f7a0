"""Every supported family gives, over the paged cache, the tokens that transformers' own generate gives."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from covering import few_of
from safetensors.torch import load_file, save_file
from slipstream.actors.checkpoint import open_checkpoint
from slipstream.actors.executor.cache.kv_cache import allocate
from slipstream.actors.executor.cache.paged_batch import PagedBatch
from slipstream.actors.executor.cache.state import StateCache
from slipstream.actors.executor.model.loading.language_model import SERVED_AS_TEXT
from slipstream.actors.executor.model.loading.load import load_model
from slipstream.actors.executor.model.paged_model import PagedModel
from tiny_models import (
    EOS_TOKEN_ID,
    FAMILIES,
    MULTIMODAL,
    STATEFUL,
    VOCAB_SIZE,
    WINDOW,
    auto_class,
    make_checkpoint,
)

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
BLOCK_SIZE = 4
NEW_TOKENS = 10
PROMPT_LENGTHS = (3, 2 * WINDOW + 1, 9, 26, 9, 1)

torch.set_num_threads(1)


def prompts() -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(VOCAB_SIZE - 2) for _ in range(length)] for length in PROMPT_LENGTHS]


class Driver:
    """Decodes greedily with no scheduler: `step` says how many tokens of which sequences to feed."""

    def __init__(self, model: PagedModel, prompts: list[list[int]]) -> None:
        self.model = model
        self.texts = [list(prompt) for prompt in prompts]
        self.prompt_lengths = [len(prompt) for prompt in prompts]
        self.fed = [0] * len(prompts)
        width = -(-(max(self.prompt_lengths) + NEW_TOKENS) // BLOCK_SIZE) + 1
        blocks = list(range(1, 1 + width * len(prompts)))
        random.Random(3).shuffle(blocks)
        where = model.device
        self.table = torch.tensor(blocks, dtype=torch.int32, device=where).view(len(prompts), width)
        self.cache = allocate(model.kv_layout, len(blocks) + 1, BLOCK_SIZE, where, model.dtype)
        self.states = StateCache(model.state_layout, len(prompts), where) if model.state_layout else None

    def finished(self, row: int) -> bool:
        return len(self.texts[row]) == self.prompt_lengths[row] + NEW_TOKENS

    def decodes(self, row: int) -> bool:
        return self.fed[row] >= self.prompt_lengths[row]

    def step(self, counts: dict[int, int]) -> None:
        """Feed ``counts[row]`` tokens of each row; a row whose tokens are all fed gets its next one."""
        where = self.model.device
        rows = sorted(counts)
        spans = [(row, self.fed[row], self.fed[row] + counts[row]) for row in rows]
        of_row = torch.tensor([row for row, start, end in spans for _ in range(start, end)], device=where)
        positions = torch.tensor([at for _, start, end in spans for at in range(start, end)], device=where)
        ids = torch.tensor(
            [token for row, start, end in spans for token in self.texts[row][start:end]], device=where
        )
        starts = [0]
        for _, start, end in spans:
            starts.append(starts[-1] + end - start)
        kv_lens = [end for _, _, end in spans]
        batch = PagedBatch(
            cache=self.cache,
            rows=torch.tensor(rows, device=where),
            kv_lens=torch.tensor(kv_lens, dtype=torch.int32, device=where),
            query_start=torch.tensor(starts, dtype=torch.int32, device=where),
            write_index=self.table[of_row, positions // BLOCK_SIZE].long() * BLOCK_SIZE
            + positions % BLOCK_SIZE,
            block_table=self.table,
            decode_only=all(counts[row] == 1 for row in rows),
            # A bound, not the maximum.
            max_kv_len=max((kv_lens[i] for i, row in enumerate(rows) if counts[row] == 1), default=-1) + 1,
            states=self.states,
            row_tokens=tuple(counts[row] for row in rows),
        )
        last = torch.tensor(starts[1:], device=where) - 1
        logits = self.model.forward(ids, positions, batch, last)
        assert logits.shape == (len(rows), self.model.vocab_size)
        for i, row in enumerate(rows):
            self.fed[row] += counts[row]
            if self.fed[row] == len(self.texts[row]):
                self.texts[row].append(int(logits[i].argmax()))


def completions(driver: Driver) -> list[list[int]]:
    return [text[length:] for text, length in zip(driver.texts, driver.prompt_lengths, strict=True)]


def alone(model: PagedModel) -> list[list[int]]:
    """Each prompt by itself, in one piece."""
    found = []
    for prompt in prompts():
        driver = Driver(model, [prompt])
        driver.step({0: len(prompt)})
        while not driver.finished(0):
            driver.step({0: 1})
        found += completions(driver)
    return found


def mixed(model: PagedModel) -> list[list[int]]:
    """All prompts together: they join one after another, in chunks, while others decode."""
    driver = Driver(model, prompts())
    draw = random.Random(9)
    rows = range(len(PROMPT_LENGTHS))
    for step in range(1000):
        waiting = [row for row in rows if row <= step and not driver.finished(row)]
        if step >= len(rows) and not waiting:
            break
        counts = {
            row: 1
            if driver.decodes(row)
            else min(draw.randint(1, 7), driver.prompt_lengths[row] - driver.fed[row])
            for row in waiting
        }
        driver.step(counts)
    return completions(driver)


def generated(family: str, folder: Path, where: torch.device) -> list[list[int]]:
    """What transformers makes of each prompt."""
    model: Any = auto_class(family).from_pretrained(folder, dtype=torch.float32)
    if family == "llama4":
        model = (
            model.language_model
        )  # with pictures or without, the whole of it cannot generate in transformers 5.24
    model.to(where)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = EOS_TOKEN_ID
    return [
        model.generate(torch.tensor([prompt], device=where), max_new_tokens=NEW_TOKENS, do_sample=False)[
            0, len(prompt) :
        ].tolist()
        for prompt in prompts()
    ]


@pytest.mark.parametrize(
    "family",
    [
        *FAMILIES,
        *few_of(STATEFUL, "qwen3_next", "mamba", "falcon_h1"),
        *few_of(MULTIMODAL, "gemma3", "qwen3_5", "llava"),
    ],
)
@pytest.mark.parametrize(
    ("where", "backend"),
    [
        pytest.param(CPU, "torch", id="cpu"),
        pytest.param(CUDA, "torch", id="cuda-torch", marks=NO_GPU),
        pytest.param(CUDA, "triton", id="cuda-triton", marks=NO_GPU),
    ],
)
def test_family_generates_what_transformers_does(
    family: str, where: torch.device, backend: str, tmp_path: Path
) -> None:
    folder = make_checkpoint(family, tmp_path)
    model = load_model(str(folder), device=where, dtype="float32", attention_backend=backend)
    expected = generated(family, folder, where)
    assert len({tuple(tokens) for tokens in expected}) == len(expected), "the prompts must matter"
    assert alone(model) == expected
    assert mixed(model) == expected


def test_properties_of_a_loaded_model(tmp_path: Path) -> None:
    model = load_model(
        str(make_checkpoint("llama", tmp_path)), device=CPU, dtype="auto", attention_backend="torch"
    )
    assert model.vocab_size == VOCAB_SIZE
    assert model.max_model_len == 256
    assert open_checkpoint(str(tmp_path)).eos_token_ids() == [EOS_TOKEN_ID]
    assert model.dtype == torch.float32
    assert model.weight_bytes == pytest.approx((tmp_path / "model.safetensors").stat().st_size, rel=0.1)
    assert model.kv_layout.bytes_per_block(BLOCK_SIZE, model.dtype) == 2 * 2 * 2 * 8 * BLOCK_SIZE * 4


def test_every_multimodal_type_that_is_served_is_compared() -> None:
    assert set(MULTIMODAL) == SERVED_AS_TEXT


def test_the_document_on_models_names_every_family_that_is_compared() -> None:
    document = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    served = document[document.index("<!-- types served") : document.index("<!-- end of served")]
    missing = [family for family in [*FAMILIES, *STATEFUL, *MULTIMODAL] if f"`{family}`" not in served]
    assert missing == ["lfm2_moe"], "whose defaults make no model"


OTHER_PARTS = ("visual", "vision", "projector", "audio")


@pytest.mark.parametrize("family", ["gemma3", "gemma3n", "qwen2_5_vl", "mllama"])
def test_only_the_weights_of_the_language_model_are_read(family: str, tmp_path: Path) -> None:
    """Of the others nothing is kept, and what cannot be read of them does not matter."""
    file = make_checkpoint(family, tmp_path) / "model.safetensors"
    weights = load_file(file)
    others = [name for name in weights if any(part in name for part in OTHER_PARTS)]
    assert others
    if family == "mllama":  # one of its layers attends to pictures, and to nothing else
        others += [name for name in weights if ".layers.1." in name and name not in others]
        assert any("cross_attn" in name for name in others)
    for name in others:
        weights[name] = torch.empty(0)
    save_file(weights, file, metadata={"format": "pt"})
    model = load_model(str(tmp_path), device=CPU, dtype="float32")
    own = sum(weight.nbytes for name, weight in weights.items() if name not in others)
    assert model.weight_bytes == pytest.approx(own, rel=0.05)
