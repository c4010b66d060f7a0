"""A model of transformers: load it, refuse what would run and be wrong, make it fast."""
