"""Weights in an arena: a model of tiny checkpoints moved into one, and another made of it, compute the same bits."""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from adapters import make_adapter, merge
from rank_threads import LOADING, at_once, groups, take_turns
from slipstream.actors.executor.keeping import weights
from slipstream.actors.executor.keeping.arena import Arena, aligned
from slipstream.actors.executor.keeping.weights import KeptWeights, written
from slipstream.actors.executor.model import support
from slipstream.actors.executor.model.adapters import limits
from slipstream.actors.executor.model.adapters.limits import AdapterLimits
from slipstream.actors.executor.model.adapters.tail import TailedLinear
from slipstream.actors.executor.model.comparison import compared_tokens, paged_logits
from slipstream.actors.executor.model.findings import DecoderFindings, findings_of
from slipstream.actors.executor.model.fused import fuse, recognise
from slipstream.actors.executor.model.loading.load import load_config, load_model, skeleton_of
from slipstream.actors.executor.model.paged_model import PagedModel
from slipstream.actors.executor.ranks import shard_loading
from slipstream.actors.executor.ranks.group import RankGroup
from slipstream.actors.executor.ranks.shard_loading import load_shard
from slipstream.protocol.internal import Adapter
from slipstream.runtime.keeping import MAX_FILES, HeldFiles
from tiny_models import FAMILIES, make_checkpoint

CPU = torch.device("cpu")


class OwnShelf:
    """A keeper in this process."""

    def __init__(self) -> None:
        self.held_files = HeldFiles()

    def hold(self, files: list[int]) -> None:
        self.held_files.answer(b"keep weights", [os.dup(file) for file in files])

    def fetch(self) -> list[int]:
        return [os.dup(file) for file in self.held_files.answer(b"fetch weights", [])[1]]

    def forget(self) -> None:
        self.held_files.answer(b"forget weights", [])


@pytest.fixture
def shelves() -> Iterator[list[KeptWeights]]:
    """Those of two ranks."""
    found = [KeptWeights("/nowhere", rank) for rank in range(2)]
    for each in found:
        own = OwnShelf()
        each.keeper, each.hold = own, own.hold  # type: ignore[assignment]
    yield found
    for each in found:
        each.keeper.forget()


@pytest.fixture(autouse=True)
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    take_turns(monkeypatch, {shard_loading: LOADING, weights: ("skeleton_of",)})


@pytest.fixture
def kept(shelves: list[KeptWeights]) -> KeptWeights:
    """Those of one executor."""
    return shelves[0]


def logits(model: PagedModel) -> torch.Tensor:
    with torch.inference_mode():
        return paged_logits(model, compared_tokens(model))


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
    second = kept.taken_over(str(folder), CPU, "torch")
    assert second is not None
    assert torch.equal(logits(second), expected)
    assert second.unfused_because == first.unfused_because
    assert second.weight_bytes == first.weight_bytes
    assert len(held(first)) == len(held(second)) == 1, "all is in the arena"
    assert second.dtype == first.dtype


def test_nothing_is_run_and_no_number_asked_of_weights_that_were_understood_before(
    kept: KeptWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a skeleton that was made before there was a device."""
    for family in ("llama", "gemma3_text", "gpt_oss", "qwen3_moe"):
        folder = make_checkpoint(family, tmp_path / family)
        first = load_model(str(folder), device=CPU, around=kept.keeping)
        assert not first.unfused_because
        skeleton = skeleton_of(load_config(folder), first.dtype)
        with monkeypatch.context() as none:
            for module, name in ((fuse, "observe"), (support, "record_attention"), (recognise, "close")):
                none.setattr(module, name, None)
            second = kept.taken_over(str(folder), CPU, "torch", skeleton=skeleton)
        assert second is not None
        assert second.transformer is skeleton.transformer
        assert torch.equal(logits(second), logits(first))
        assert second.decoder_findings == first.decoder_findings


def test_a_skeleton_of_another_dtype_is_not_used(kept: KeptWeights, tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path / "llama")
    first = load_model(str(folder), device=CPU, dtype="bfloat16", around=kept.keeping)
    skeleton = skeleton_of(load_config(folder), torch.float32)
    second = kept.taken_over(str(folder), CPU, "torch", skeleton=skeleton)
    assert second is not None
    assert second.dtype == torch.bfloat16
    assert torch.equal(logits(second), logits(first))


@pytest.mark.parametrize("derived", [[], [1.0], ["silu", 1.0]])
def test_findings_about_another_decoder_are_of_no_use(
    derived: list[float | str],
    kept: KeptWeights,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def other(*given: Any) -> DecoderFindings:
        found = findings_of(*given)
        assert found is not None
        return msgspec.structs.replace(found, derived=derived)

    monkeypatch.setattr(fuse, "findings_of", other)
    folder = make_checkpoint("llama", tmp_path / "llama")
    load_model(str(folder), device=CPU, around=kept.keeping)
    assert kept.taken_over(str(folder), CPU, "torch") is None
    assert "the decoder is not the one of the findings" in caplog.text
    assert not kept.keeper.fetch()


def test_a_batch_invariant_model_of_kept_weights_is_one_too(kept: KeptWeights, tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path / "llama")
    first = load_model(str(folder), device=CPU, batch_invariant=True, around=kept.keeping)
    second = kept.taken_over(str(folder), CPU, "torch", batch_invariant=True)
    assert second is not None
    assert second.batch_invariant
    assert torch.equal(logits(first), logits(second))


def test_weights_that_are_joined_lie_in_the_arena_once(kept: KeptWeights, tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path / "llama")
    model = load_model(str(folder), device=CPU, around=kept.keeping)
    assert not model.unfused_because
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


# --- weights with tails for adapters ----------------------------------------------------------------

LIMITS = AdapterLimits(2, 8)


@pytest.fixture
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tails for models so narrow that they are not worth it."""
    monkeypatch.setattr(limits, "MAX_OF_WIDTH", 100)


def with_adapter(model: PagedModel, adapter: Path) -> torch.Tensor:
    """The logits with an adapter that every token has."""
    places = model.take_adapters(LIMITS.count, LIMITS.max_rank)
    for _ in places.load(Adapter(2, "own", str(adapter))):
        pass
    begin = places.products.begin
    places.products.begin = lambda ids: begin(torch.full_like(ids, 2))  # type: ignore[method-assign]
    return logits(model)


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    limit = 1e-5 if found.device.type == "cpu" else 1e-4
    return float((found - expected).norm() / expected.norm()) < limit


@pytest.mark.usefixtures("_narrow")
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_oss"])
@pytest.mark.parametrize(
    "device",
    [
        CPU,
        pytest.param(
            torch.device("cuda", 0),
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ),
    ],
    ids=str,
)
def test_kept_weights_have_their_tails_in_which_nothing_is_left(
    family: str, device: torch.device, kept: KeptWeights, tmp_path: Path
) -> None:
    folder = make_checkpoint(family, tmp_path / family)
    targets = ("qkv_proj", "o_proj") if family == "phi3" else ("q_proj", "v_proj", "o_proj")
    adapter = make_adapter(folder, tmp_path / "adapter", seed=1, targets=targets)
    merged = logits(load_model(str(merge(folder, adapter, tmp_path / "merged")), device=device))
    expected = logits(load_model(str(folder), device=device))
    first = load_model(str(folder), device=device, adapter_limits=LIMITS, around=kept.keeping)
    assert near(with_adapter(first, adapter), merged)
    for module in first.transformer.modules():
        if isinstance(module, TailedLinear):
            module.weight.data[:, module.in_features :] = 7.0  # it dies while it loads another
    for file in folder.glob("*.safetensors"):
        file.unlink()
    second = kept.taken_over(str(folder), device, "torch", adapter_limits=LIMITS)
    assert second is not None
    assert len(held(first)) == len(held(second)) == 1, "all is in the arena"
    assert near(logits(second), expected)
    assert near(with_adapter(second, adapter), merged)


@pytest.mark.usefixtures("_narrow")
def test_kept_weights_with_room_for_others_are_copied_into_new_ones(
    kept: KeptWeights, tmp_path: Path
) -> None:
    folder = make_checkpoint("llama", tmp_path / "llama")
    adapter = make_adapter(folder, tmp_path / "adapter", seed=1, rank=8)
    merged = logits(load_model(str(merge(folder, adapter, tmp_path / "merged")), device=CPU))
    load_model(str(folder), device=CPU, adapter_limits=AdapterLimits(20, 8), around=kept.keeping)
    second = kept.taken_over(str(folder), CPU, "torch", adapter_limits=LIMITS)
    assert second is not None
    assert near(with_adapter(second, adapter), merged)


@pytest.mark.usefixtures("_narrow")
def test_ranks_keep_their_parts_with_tails(shelves: list[KeptWeights], tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path / "llama")
    adapter = make_adapter(folder, tmp_path / "adapter", seed=1)
    merged = logits(load_model(str(merge(folder, adapter, tmp_path / "merged")), device=CPU))
    loaded(folder, shelves, LIMITS)
    second = taken_over(folder, shelves, LIMITS)
    assert all(model is not None and len(held(model)) == 1 for model in second)
    assert all(near(found, merged) for found in at_once(with_adapter, second, [adapter] * 2))


# --- ranks --------------------------------------------------------------------------------------


def loaded(
    folder: Path, shelves: list[KeptWeights], adapter_limits: AdapterLimits | None = None
) -> list[PagedModel]:
    """The parts of two ranks, which are kept."""

    def load(group: RankGroup, kept: KeptWeights) -> PagedModel:
        return load_shard(
            str(folder),
            group,
            device=CPU,
            dtype="auto",
            attention_backend="torch",
            adapter_limits=adapter_limits,
            around=kept.keeping,
        )

    return at_once(load, groups(2), shelves)


def taken_over(
    folder: Path, shelves: list[KeptWeights], adapter_limits: AdapterLimits | None = None
) -> list[PagedModel | None]:
    def take(group: RankGroup, kept: KeptWeights) -> PagedModel | None:
        return kept.taken_over(str(folder), CPU, "torch", group=group, adapter_limits=adapter_limits)

    return at_once(take, groups(2), shelves)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt_oss", "gemma3_text"])
def test_ranks_take_their_parts_over_and_compute_the_same_bits(
    family: str, shelves: list[KeptWeights], tmp_path: Path
) -> None:
    folder = make_checkpoint(family, tmp_path / family)
    first = loaded(folder, shelves)
    expected = at_once(logits, first)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    second = taken_over(folder, shelves)
    assert all(torch.equal(found, expected[0]) for found in at_once(logits, second))
    for one, other in zip(first, second, strict=True):
        assert other is not None
        assert other.group is not None
        assert (other.weight_bytes, other.unfused_because) == (one.weight_bytes, one.unfused_because)
        assert len(held(other)) == 1, "all is in the arena"


@pytest.mark.parametrize("damage", ["nothing is kept", "what is kept is of no use"])
def test_a_rank_whose_part_cannot_be_taken_over_has_all_parts_loaded_anew(
    damage: str, shelves: list[KeptWeights], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_checkpoint("llama", tmp_path / "llama")
    loaded(folder, shelves)
    shelves[1].keeper.forget()
    if damage == "what is kept is of no use":
        table = written(b"no table")
        shelves[1].hold([table])
        os.close(table)
    assert taken_over(folder, shelves) == [None, None]
    assert not any(each.keeper.fetch() for each in shelves), "they would be there twice"
    assert "the weights are loaded anew: another rank has none that are of use" in caplog.text


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
        arena.allocate(part)
        taken = sum(size for _, size in pages.pieces)
        assert taken <= pages.reserved
        assert taken - arena.piece_bytes < part * (number + 1), "no sooner than it is needed"
    assert all(start == number * arena.piece_bytes for number, (start, _) in enumerate(pages.pieces))
    assert all(size % pages.granularity == 0 for _, size in pages.pieces)
    assert 1 + len(pages.pieces) <= MAX_FILES
