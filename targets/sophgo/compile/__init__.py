"""ONNX -> artefacts of Sophgo chips by the real compiler, with names and number formats read back."""

from .artefact import compile_model as compile_model
from .calibration import CALIBRATORS as CALIBRATORS
from .calibration import calibrate as calibrate
from .chips import CHIPS as CHIPS
from .chips import MODES as MODES
from .chips import Chip as Chip
from .chips import Mode as Mode
from .interpreter import Interpreter as Interpreter
from .job import Artefact as Artefact
from .job import CompileJob as CompileJob
from .lint import Finding as Finding
from .lint import lint as lint
