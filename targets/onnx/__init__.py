"""The `onnx` target: export, ONNX Runtime, files of others, and the originals' own folder."""

from .layout import export_originals as export_originals
from .target import OnnxTarget as OnnxTarget
