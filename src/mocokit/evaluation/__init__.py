"""How good features are: extraction, kNN, label-free scores."""
