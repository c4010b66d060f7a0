"""The views of ``slipstream top`` and ``slipstream trace``."""
