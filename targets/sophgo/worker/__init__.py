"""Scripts that the toolchain's own Python 3.10 executes as `python -m worker`; never imported by parity."""
