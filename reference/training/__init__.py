"""Training of reference checkpoints on text that every machine has."""
