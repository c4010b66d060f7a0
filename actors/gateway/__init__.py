"""The gateway: the front door, admission, and the ledger of requests."""
