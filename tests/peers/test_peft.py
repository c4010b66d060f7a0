"""Adapters that peft makes give the tokens of the model that peft merges them into.

Where peft is installed, which needs accelerate too: ``pip install peft``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rig import Rig
from slipstream.actors.executor.model.adapters.loaded import LoadedAdapters
from slipstream.actors.executor.model.loading.load import load_model
from slipstream.actors.executor.model.paged_model import PagedModel
from slipstream.protocol.internal import Adapter
from slipstream.protocol.sampling import SamplingParams
from tiny_models import make_checkpoint
from transformers import AutoModelForCausalLM

peft: Any = pytest.importorskip("peft")

CPU = torch.device("cpu")

FAMILIES: dict[str, Any] = {
    "llama": "all-linear",
    "qwen2": ["q_proj", "v_proj"],
    "phi3": ["qkv_proj", "gate_up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
}


def tokens(model: PagedModel, adapter: str = "", kept: LoadedAdapters | None = None) -> dict[int, list[int]]:
    rig = Rig(model, 2, 40, adapters=kept)
    for request in range(6):
        params = SamplingParams(max_tokens=20, temperature=0.0, seed=0, adapter=adapter)
        rig.ask(request, [3 + request, 50, 7, 9 + request], params)
    rig.finish()
    return rig.tokens


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"ranks": 6}], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_the_model_that_peft_merges(
    family: str, more: dict[str, Any], tmp_path: Path
) -> None:
    targets = FAMILIES[family]
    if rank := more.get("ranks"):
        first, last = ("q_proj", "up_proj") if targets == "all-linear" else (targets[0], targets[-1])
        more = {"rank_pattern": {first: rank}, "alpha_pattern": {last: 5}}
    base = make_checkpoint(family, tmp_path / "base", initializer_range=1.0)
    asked = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=targets,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
        fan_in_fan_out=family == "gpt2",
        **more,
    )
    torch.manual_seed(1)
    trained = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), asked)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0.0, 0.5)
    trained.save_pretrained(tmp_path / "adapter")
    plain: Any = AutoModelForCausalLM.from_pretrained(base)
    merged = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")

    model = load_model(str(base), device=CPU)
    kept = LoadedAdapters(model.take_adapters(1, 8))
    kept.start([Adapter(1, "a", str(tmp_path / "adapter"))])
    expected = tokens(load_model(str(tmp_path / "merged"), device=CPU))
    assert expected != tokens(load_model(str(base), device=CPU))
    assert tokens(model, "a", kept) == expected
