"""The TPU-MLIR toolchain: found, installed, adopted and checked; never imported into this process."""

from .chips import CHIP_LIBRARIES as CHIP_LIBRARIES
from .choice import installed as installed
from .choice import why_missing as why_missing
from .toolchain import Toolchain as Toolchain
