"""A small network and a port of it that is wrong in one place."""
