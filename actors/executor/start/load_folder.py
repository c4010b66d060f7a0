"""Loads from a model's folder, as the options say, the model, its adapters and its vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....protocol.errors import InvalidRequest
from ....protocol.internal import Adapter
from ....runtime.log import logger
from ...options import ExecutorOptions
from ...text.grammars.grammar import GrammarCompiler, load_compiler
from ..devices.kinds import kind_of
from ..model.adapters.loaded import LoadedAdapters

if TYPE_CHECKING:
    import torch

    from ....runtime.process.child import StartContext
    from ..model.adapters.limits import AdapterLimits
    from ..model.loading.load import Skeleton
    from ..model.paged_model import PagedModel
    from ..ranks.group import RankGroup


def load(
    context: StartContext, options: ExecutorOptions, where: torch.device, skeleton: Skeleton | None = None
) -> PagedModel:
    """The model on its device, as it is served, or of several ranks the part of this one.

    If the incarnation before had its weights kept, these are given to ``skeleton``.
    """
    from ..keeping.weights import KeptWeights
    from ..model.loading.load import load_model, make_model, nothing_around

    group = None if options.tensor_parallel_size == 1 else meet_ranks(context, options, where)
    kept = KeptWeights(options.keeper, options.rank) if options.keeper else None
    backend, adapter_limits, model = backend_of(options, where), adapter_limits_of(options, where), None
    if kept is not None and context.restarted:
        context.phase("take weights over")
        model = kept.taken_over(
            options.model,
            where,
            backend,
            batch_invariant=options.batch_invariant,
            group=group,
            adapter_limits=adapter_limits,
            skeleton=skeleton,
        )
    if model is not None:
        return check_length(options, model)
    context.phase("load weights")
    random = options.load_format == "dummy"
    given: dict[str, Any] = dict(
        device=where,
        dtype=options.dtype,
        attention_backend=backend,
        quantization=options.quantization,
        adapter_limits=adapter_limits,
        around=nothing_around if kept is None else kept.keeping,
    )
    if group is None:
        given["batch_invariant"] = options.batch_invariant
        model = (make_model if random else load_model)(options.model, **given)
    else:
        from ..ranks.shard_loading import load_shard, make_shard

        model = (make_shard if random else load_shard)(options.model, group, **given)
    return check_length(options, model)


def meet_ranks(context: StartContext, options: ExecutorOptions, where: torch.device) -> RankGroup:
    """The group of this rank and all others, once they are all there."""
    from ..ranks.rendezvous import meet

    context.phase("meet the other ranks")
    return meet(options.rank, options.tensor_parallel_size, options.rendezvous, where)


def load_adapters(
    context: StartContext, options: ExecutorOptions, model: PagedModel
) -> LoadedAdapters | None:
    """Load the adapters that are there from the start, into slots of this incarnation; None: no room for any."""
    if not options.max_loras:
        return None
    context.phase("load adapters")
    weights = model.take_adapters(options.max_loras, options.max_lora_rank)
    adapters = LoadedAdapters(weights, Path(options.adapters_file))
    adapters.start([Adapter(id, name, path) for id, (name, path) in enumerate(options.adapters, 1)])
    if model.group is not None:
        leave_out_what_others_lack(adapters, model.group, model.device)
    return adapters


def leave_out_what_others_lack(adapters: LoadedAdapters, group: RankGroup, device: torch.device) -> None:
    """An adapter that was there before may be gone for one rank, and not yet for another: they compute together."""
    for id in range(1, adapters.weights.count + 1):
        everywhere = group.least(int(id in adapters.loaded), device)
        if not everywhere and id in adapters.loaded:
            logger.warning(
                "the adapter %r is not loaded on another rank: it is left out", adapters.loaded[id].name
            )
            adapters.unload(id)


def make_skeleton(options: ExecutorOptions) -> Skeleton:
    """The model without memory, as its folder says; one of another dtype will not be used."""
    import torch

    from ..model.loading.language_model import language_model_config
    from ..model.loading.load import load_config, skeleton_of

    config = load_config(Path(options.model))
    own = getattr(language_model_config(config), "dtype", None)
    dtype = (own or torch.float32) if options.dtype == "auto" else getattr(torch, options.dtype)
    return skeleton_of(config, dtype)


def adapter_limits_of(options: ExecutorOptions, where: torch.device) -> AdapterLimits | None:
    """The limits of adapters that lie in the weights themselves. On a CPU none do (None): forks share what nothing ever
    writes to."""
    from ..model.adapters.limits import AdapterLimits

    return (
        AdapterLimits(options.max_loras, options.max_lora_rank)
        if options.max_loras and where.type == "cuda"
        else None
    )


def check_length(options: ExecutorOptions, model: PagedModel) -> PagedModel:
    if options.max_model_len > model.max_model_len:
        raise InvalidRequest(
            f"max_model_len={options.max_model_len} is over the {model.max_model_len} tokens that this model"
            " can be served with; lower --max-model-len"
        )
    return model


def backend_of(options: ExecutorOptions, where: torch.device) -> str:
    """The name of the attention backend that is asked for, or the device's own."""
    auto = options.attention_backend == "auto"
    return kind_of(where.type).attention if auto else options.attention_backend


def load_grammars(context: StartContext, options: ExecutorOptions) -> GrammarCompiler | str:
    context.phase("load grammar vocabulary")
    return load_compiler(Path(options.model), options.vocab_size, options.eos_token_ids)
