"""Plain, readable model code. A model costs no import until it is named."""

from ._registry import MODELS as MODELS
from ._registry import find_model as find_model
from ._registry import known_models as known_models
