"""The vocabulary of a model: its tokenizer, read from its folder, and the piece of text of each token."""
