"""The client: a pure session, a blocking and an asyncio client around it, and what they show of a service."""
