"""Grammars that answers must match: of schemas, expressions and calls; which tokens may come next."""
