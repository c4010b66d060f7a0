"""Weights in an arena: a model of tiny checkpoints moved into one, and another made of it, compute the same bits."""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from slipstream.actors.executor.keeping.arena import Arena, aligned
from slipstream.actors.executor.keeping.weights import KeptWeights, model_of
from slipstream.actors.executor.model.load import load_model
from slipstream.actors.executor.model.paged_model import PagedModel
from slipstream.actors.executor.model.probe import paged_logits, probe_tokens
from slipstream.runtime.keeping import MOST_FILES, Shelf
from tiny_models import FAMILIES, make_checkpoint

CPU = torch.device("cpu")


class OwnShelf:
    """A keeper in this process."""

    def __init__(self) -> None:
        self.shelf = Shelf()

    def hold(self, files: list[int]) -> None:
        self.shelf.answer(b"keep weights", [os.dup(file) for file in files])

    def fetch(self) -> list[int]:
        return [os.dup(file) for file in self.shelf.answer(b"fetch weights", [])[1]]

    def forget(self) -> None:
        self.shelf.answer(b"forget weights", [])


@pytest.fixture
def kept() -> Iterator[KeptWeights]:
    found = KeptWeights("/nowhere")
    own = OwnShelf()
    found.keeper, found.hold = own, own.hold  # type: ignore[assignment]
    yield found
    found.keeper.forget()


def logits(model: PagedModel) -> torch.Tensor:
    with torch.inference_mode():
        return paged_logits(model, probe_tokens(model))


def held(model: PagedModel) -> set[int]:
    """Where the storages begin that its parameters are in."""
    return {parameter.untyped_storage().data_ptr() for parameter in model.transformer.parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_kept_weights_computes_the_same_bits_reads_no_file_and_copies_no_weight(
    family: str, kept: KeptWeights, tmp_path: Path
) -> None:
    folder = make_checkpoint(family, tmp_path / family)
    expected = logits(load_model(str(folder), device=CPU))
    first = load_model(str(folder), device=CPU, around=kept.keeping)
    assert torch.equal(logits(first), expected)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    second = model_of(str(folder), kept.keeper.fetch(), CPU, "torch")
    assert torch.equal(logits(second), expected)
    assert second.kept_because == first.kept_because
    assert second.weight_bytes == first.weight_bytes
    assert len(held(first)) == len(held(second)) == 1, "all is in the arena"
    assert second.dtype == first.dtype


def test_a_batch_invariant_model_of_kept_weights_is_one_too(kept: KeptWeights, tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path / "llama")
    first = load_model(str(folder), device=CPU, batch_invariant=True, around=kept.keeping)
    second = model_of(str(folder), kept.keeper.fetch(), CPU, "torch", batch_invariant=True)
    assert second.batch_invariant
    assert torch.equal(logits(first), logits(second))


def test_weights_that_are_joined_lie_in_the_arena_once(kept: KeptWeights, tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path / "llama")
    model = load_model(str(folder), device=CPU, around=kept.keeping)
    assert not model.kept_because
    arena = sum(os.fstat(file).st_size for file in kept.keeper.fetch()[1:])
    assert model.weight_bytes <= arena < 1.25 * model.weight_bytes + 512 * 40


def test_what_writes_to_kept_weights_dies_of_it(kept: KeptWeights, tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path / "llama")
    model = load_model(str(folder), device=CPU, around=kept.keeping)
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        next(model.transformer.parameters()).data.zero_()
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGSEGV


class Counted:
    """Pages that are only numbers."""

    granularity = 1 << 21

    def __init__(self) -> None:
        self.reserved = 0
        self.pieces: list[tuple[int, int]] = []

    def reserve(self, nbytes: int) -> None:
        self.reserved = nbytes

    def create(self, start: int, nbytes: int) -> int:
        self.pieces.append((start, nbytes))
        return len(self.pieces)

    def tensor(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device="meta")


@pytest.mark.parametrize("gigabytes", [0.001, 0.9, 16, 141, 700])
def test_memory_is_taken_piece_by_piece_and_never_in_more_pieces_than_one_message_carries(
    gigabytes: float,
) -> None:
    parts = 40
    part, pages = aligned(int(gigabytes * (1 << 30)) // parts), Counted()
    arena = Arena(pages, parts * part)  # type: ignore[arg-type]
    for number in range(parts):
        arena.place(part)
        taken = sum(size for _, size in pages.pieces)
        assert taken <= pages.reserved
        assert taken - arena.piece_bytes < part * (number + 1), "no sooner than it is needed"
    assert all(start == number * arena.piece_bytes for number, (start, _) in enumerate(pages.pieces))
    assert all(size % pages.granularity == 0 for _, size in pages.pieces)
    assert 1 + len(pages.pieces) <= MOST_FILES
