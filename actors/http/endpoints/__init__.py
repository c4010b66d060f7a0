"""The endpoints: generation, tokenization, metrics, the dashboard, the model and the health."""
