"""The transport of requests and answers: connections, request bodies, server-sent events."""
