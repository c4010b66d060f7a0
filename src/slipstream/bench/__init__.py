"""``slipstream bench``: what a service reaches, measured from outside."""
