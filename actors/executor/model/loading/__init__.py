"""From a model's folder to the model: what it is, how much memory it will take, its weights."""
