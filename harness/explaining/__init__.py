"""Why a tap is wrong: a catalogue of known mistakes, each computed on the reference's inputs.

`op.py` says what a hypothesis is, one file per family holds them, `search.py` holds them against what was
seen, `causes.py` puts it into words.
"""

from .catalogue import CATALOGUE as CATALOGUE
from .causes import Explanation as Explanation
from .causes import causes_of as causes_of
from .causes import explanations as explanations
from .causes import told as told
