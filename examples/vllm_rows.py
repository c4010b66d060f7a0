"""vLLM on the rows of ``ranks.py``, in a process of its own: ``python vllm_rows.py FILE``, as ``ranks.py`` writes it.

Prints a line ``ROW {…}`` for each number of rows. A step is what each further token took when an answer became twice as
long, so that neither prompts nor the start of an answer are in it.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

WITHOUT_MULTICAST = {
    "NCCL_NVLS_ENABLE": "0",
    "NVSHMEM_DISABLE_NVLS": "1",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "VLLM_ALLREDUCE_USE_FLASHINFER": "0",
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
    "VLLM_USE_NCCL_SYMM_MEM": "0",
}
"""Rented machines have the multicast of their links off, and what tries it can put GPUs out of service. vLLM's own
kernels sum over peer memory, as ours do."""

QUIET = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}

WITHOUT_FUSED_SUMS = {"pass_config": {"fuse_allreduce_rms": False}}
"""As the above: what vLLM fuses sums with is FlashInfer's multicast."""


def main(asked: dict[str, Any]) -> None:
    rows, prompts, new = asked["rows"], asked["prompts"], asked["new"]
    vllm: Any = importlib.import_module("vllm")
    adapter, request = asked["adapter"], None
    options: dict[str, Any] = {"quantization": asked["quantization"]} if asked["quantization"] else {}
    if adapter:
        lora: Any = importlib.import_module("vllm.lora.request")
        request = lora.LoRARequest("one", 1, adapter)
        options |= {"enable_lora": True, "max_lora_rank": asked["adapter_rank"]}
    begun = time.perf_counter()
    llm = vllm.LLM(
        asked["folder"],
        load_format="dummy",
        tensor_parallel_size=asked["ranks"],
        skip_tokenizer_init=True,
        max_num_seqs=max(rows),
        max_model_len=len(prompts[0]) + new + 8,
        enable_prefix_caching=False,
        gpu_memory_utilization=0.9,
        compilation_config=WITHOUT_FUSED_SUMS,
        **options,
    )
    print("ROW", json.dumps({"ready_s": round(time.perf_counter() - begun, 1)}), flush=True)

    def run(count: int, tokens: int) -> float:
        params = vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts[:count]]
        begun = time.perf_counter()
        llm.generate(inputs, params, use_tqdm=False, lora_request=request)
        return time.perf_counter() - begun

    for count in rows:
        run(count, 8)
        half, seconds = run(count, new // 2), run(count, new)
        found = {
            "rows": count,
            "seconds": round(seconds, 3),
            "tokens_per_s": round(count * new / seconds, 1),
            "step_ms": round(1000 * (seconds - half) / (new - new // 2), 3),
        }
        print("ROW", json.dumps(found), flush=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
