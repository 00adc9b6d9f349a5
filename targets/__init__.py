"""Everything less trusted than the reference. A target costs no import until it is named."""

from __future__ import annotations

#: Name -> import string of the class, made without arguments.
TARGETS: dict[str, str] = {
    "segmented": "parity.targets.segmented:SegmentedTarget",
    "onnx": "parity.targets.onnx:OnnxTarget",
    "prefilled": "parity.targets.prefilled:PrefilledTarget",
    "module": "parity.targets.module:ModuleTarget",
    "dump": "parity.targets.dump:DumpTarget",
    "cvi": "parity.targets.sophgo.target:cvi",
    "bm1684x": "parity.targets.sophgo.target:bm1684x",
}

#: The same for a module of the user's (`ModuleCase`).
MODULE_TARGETS: dict[str, str] = {
    "onnx": "parity.targets.onnx_module:OnnxModuleTarget",
    "cvi": "parity.targets.sophgo.module_target:cvi_module",
    "bm1684x": "parity.targets.sophgo.module_target:bm1684x_module",
    "module": "parity.targets.module:ModuleTarget",
    "dump": "parity.targets.dump:DumpTarget",
}
