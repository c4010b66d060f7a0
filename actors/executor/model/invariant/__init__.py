"""``--batch-invariant``: what makes a token's logits the same bits whatever else is computed with it."""
