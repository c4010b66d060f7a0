"""Anthropic's Messages API: blocks go in and come out; inside they are a conversation like any other."""
