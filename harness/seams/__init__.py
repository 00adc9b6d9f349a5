"""The same tokens executed in different ways, and the seam at which one way departs from the others."""

from __future__ import annotations
