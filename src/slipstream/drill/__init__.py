"""``slipstream drill``: kill what a service consists of while streams are open, and compare every token."""
