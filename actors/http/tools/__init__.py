"""Tools: what may be offered, the calls that a model writes, and whether their arguments fit their schema."""
