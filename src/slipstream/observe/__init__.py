"""What ``slipstream top`` and ``slipstream trace`` show."""
