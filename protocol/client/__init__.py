"""The client: a pure session, a blocking and an asyncio face of it, and what can be seen of a service with it."""
