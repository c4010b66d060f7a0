"""The scheduler: decides which sequence runs how many tokens in which step, and which blocks hold its cache."""
