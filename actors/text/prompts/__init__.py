"""From what a client asks with, a text or a conversation, to a prompt of token ids."""
