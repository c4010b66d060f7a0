"""What an answer must match: grammars of schemas, expressions and calls, and which tokens may come next."""
