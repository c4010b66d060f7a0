"""The router: one address for many services, each of which may go while its streams go on elsewhere."""
