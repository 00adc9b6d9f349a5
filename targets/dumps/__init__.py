"""Readers of what devices write, each with a writer beside it. A kind costs no import until it is needed."""

from __future__ import annotations

#: Kind -> import string of the reader's class, made without arguments.
READERS: dict[str, str] = {
    "parity": "parity.targets.dumps.parity_dump:ParityReader",
    "cvi-npz": "parity.targets.dumps.cvi:CviReader",
    "soc-npz": "parity.targets.dumps.soc:SocReader",
    "npz": "parity.targets.dumps.npz:NpzReader",
    "bmrt": "parity.targets.dumps.bmrt:BmrtReader",
    "npy": "parity.targets.dumps.npy_folder:NpyReader",
    "traced": "parity.targets.dumps.traced:TracedReader",
    "safetensors": "parity.targets.dumps.safetensors:SafetensorsReader",
    "raw": "parity.targets.dumps.raw:RawReader",
    "adump": "parity.targets.dumps.ascend.adump:AdumpReader",
    "nano": "parity.targets.dumps.ascend.nano:NanoReader",
    "atb": "parity.targets.dumps.ascend.atb:AtbReader",
    "msprobe": "parity.targets.dumps.ascend.msprobe:MsprobeReader",
    "aisbench": "parity.targets.dumps.ascend.aisbench:AisbenchReader",
    "logits": "parity.targets.dumps.ascend.logits:LogitsReader",
}
