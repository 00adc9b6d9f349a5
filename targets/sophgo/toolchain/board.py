"""A board's own runtime: which library, and which function in it, is missing. Asked in a child process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

#: Library -> names to load it by, and the functions that the runner calls.
RUNTIMES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "libcviruntime.so": (
        ("libcviruntime.so",),
        (
            "CVI_NN_RegisterModel", "CVI_NN_SetConfig", "CVI_NN_GetInputOutputTensors", "CVI_NN_Forward",
            "CVI_NN_CleanupModel",
        ),
    ),
    "libbmrt.so": (
        ("libbmrt.so", "libbmrt.so.1.0"),
        (
            "bmrt_create", "bmrt_destroy", "bmrt_load_bmodel", "bmrt_get_network_number",
            "bmrt_get_network_names", "bmrt_get_network_info", "bmrt_launch_data",
        ),
    ),
    "libbmlib.so": (("libbmlib.so", "libbmlib.so.0"), ("bm_dev_request", "bm_dev_free")),
}  # fmt: skip
#: Where boards keep them beside the loader's own folders.
FOLDERS = ("/opt/sophon/libsophon-current/lib", "/mnt/system/lib", "/mnt/system/usr/lib")
_SECONDS = 20
_QUESTION = """
import ctypes, json, os, sys
names, functions = json.loads(sys.argv[1])
reason = ""
for name in names:
    try:
        library = ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
        break
    except OSError as error:
        reason = str(error) if os.path.exists(name) else reason or str(error)
else:
    sys.exit(reason)
with open("/proc/self/maps") as maps:
    files = [line.split(None, 5)[5].strip() for line in maps if os.path.basename(name) in line]
lacks = [function for function in functions if not hasattr(library, function)]
print(json.dumps({"file": files[0] if files else name, "lacks": lacks}))
"""


@dataclass(frozen=True)
class Runtime:
    """`file` it was loaded from, or None with the loader's reason; functions it `lacks`."""

    library: str
    file: str | None
    lacks: tuple[str, ...]
    reason: str


def runtimes() -> list[Runtime]:
    """Each library of a board; on a PC all of them are absent, and nothing is wrong with that."""
    return [_ask(library, names, functions) for library, (names, functions) in RUNTIMES.items()]


def _ask(library: str, names: tuple[str, ...], functions: tuple[str, ...]) -> Runtime:
    places = [*names, *(str(Path(folder) / name) for folder in FOLDERS for name in names)]
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _QUESTION, json.dumps([places, functions])],
            capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Runtime(library, None, (), f"loading it takes longer than {_SECONDS} s")
    if done.returncode < 0:
        return Runtime(library, None, (), f"loading it dies of signal {-done.returncode}")
    if done.returncode:
        return Runtime(library, None, (), done.stderr.strip().splitlines()[-1])
    answer = json.loads(done.stdout.splitlines()[-1])
    return Runtime(library, answer["file"], tuple(answer["lacks"]), "")
