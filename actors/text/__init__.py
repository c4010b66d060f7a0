"""Between text and tokens: the tokenizer, the detokenizer, and what they share."""
