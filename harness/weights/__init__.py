"""Weights held against each other by content, before anything runs."""

from __future__ import annotations

from .matching import Report as Report
from .matching import match as match
from .weight import Weight as Weight
