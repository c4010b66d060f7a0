"""The gateway: the public socket, admission, and the ledger of requests."""
