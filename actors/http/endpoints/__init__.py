"""What each path answers with: generation, tokenization, metrics, the dashboard, the model and the health."""
