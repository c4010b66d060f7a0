"""How long greedy answers stay the same when the cache takes a byte a number.

    python examples/fp8_cache_agreement.py

The bundled model on the CPU in its own dtype answers eight prompts with 200 tokens each, with a cache in the same dtype
and with ``--kv-cache-dtype fp8``. For each prompt it prints the first token that differs, counted from 1.
"""

from __future__ import annotations

import statistics

from slipstream import LLM, SamplingParams

PROMPTS = (
    "Once upon a time there was a little dog",
    "One day a boy went to the sea",
    "12 + 7 =",
    "The old man had a boat",
    "Lily and Tom liked to play",
    "There was a cat who",
    "In the morning the sun",
    "A small bird",
)
TOKENS = 200


def answers(kv_cache_dtype: str) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    with LLM(device="cpu", kv_cache_dtype=kv_cache_dtype) as llm:
        return [output.outputs[0].token_ids for output in llm.generate(list(PROMPTS), params)]


def main() -> None:
    firsts: list[int] = []
    for own, fp8 in zip(answers("auto"), answers("fp8"), strict=True):
        pairs = enumerate(zip(own, fp8, strict=True), 1)
        firsts.append(next((at for at, (one, other) in pairs if one != other), TOKENS + 1))
    print(f"the first tokens that differ: {sorted(firsts)}, median {statistics.median(firsts):g}")


if __name__ == "__main__":
    main()
