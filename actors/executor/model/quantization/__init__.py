"""Weights that are stored in 8 bits or 4: what a checkpoint says of them, and what they are."""
