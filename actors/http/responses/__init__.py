"""OpenAI's Responses API: items go in and come out; inside they are the messages of a conversation like any other."""
