"""Natural views: `/runs/<run>/<tap>` as virtual datasets over the streams, so that any HDF5 tool reads them."""

from __future__ import annotations


def publish(path: str) -> None:
    """Nothing yet."""
