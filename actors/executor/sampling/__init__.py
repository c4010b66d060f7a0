"""From logits to tokens: the sampler, and the masks of sequences that follow a grammar."""
