"""Ascend, the file side: what to compile with, what to look out for, what arithmetic a run was made in.

Nothing here compiles or runs anything: there is no way to do either without the device's own toolkit.
"""

from __future__ import annotations

from .atc import AtcPlan as AtcPlan
from .atc import atc_lines as atc_lines
from .chips import CHIPS as CHIPS
from .chips import Chip as Chip
from .lint import Finding as Finding
from .lint import lint as lint
from .profile import ArithmeticProfile as ArithmeticProfile
from .profile import profile_of as profile_of
