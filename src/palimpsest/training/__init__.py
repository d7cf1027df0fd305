"""Training: batches, the one training loop, checkpoints."""
