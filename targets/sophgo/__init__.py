"""Sophgo chips: the real TPU-MLIR compiler, its simulators, and the boards."""
