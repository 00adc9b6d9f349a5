"""Proves that a ported neural network still computes what the original computes."""
