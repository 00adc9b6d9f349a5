"""Runs compiled models: on the simulators here, on a board with the board's own libraries."""
