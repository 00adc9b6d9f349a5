"""An installed or adopted toolchain: where its parts are, and the environment that its processes need."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from parity.harness.errors import UserError

from .chips import chip_libraries
from .views import view

#: What a child may inherit; a PYTHONPATH or LD_LIBRARY_PATH of this process would break it.
_KEPT = ("LANG", "LC_ALL", "USER", "LOGNAME", "TZ", "CMODEL_GLOBAL_MEM_SIZE")
#: Compiling small graphs gains nothing from more, and several run at once.
_THREADS = 2


@dataclass(frozen=True)
class Toolchain:
    """TPU-MLIR on this machine.

    `root` is a folder in the cache, or the adopted one; `package` holds bin/, lib/, python/. `python` is the
    3.10 interpreter that loads the bindings; without one (None) only tpuc-opt and the simulators work.
    `version` goes into every cache key, e.g. "1.30.2-20260831".
    """

    root: Path
    package: Path
    python: Path | None
    version: str
    adopted: bool

    def environment(self, chip: str, workdir: Path) -> dict[str, str]:
        """The complete environment of a child that compiles for or simulates `chip` in `workdir`.

        The loader finds this host's libc and the chip's simulator first, everything else by the package's
        own run paths; home and temporary files lie in `workdir`, which is made. UserError for an unknown
        chip, or a host that lacks a library.
        """
        home, temporary = workdir / "home", workdir / "tmp"
        for folder in (home, temporary):
            folder.mkdir(parents=True, exist_ok=True)
        compiler = self.package / "cross_toolchains" / "ppl_compile"
        path = (self.package / "bin", compiler / "bin", os.environ.get("PATH", os.defpath))
        return {
            "LANG": "C.UTF-8",
            **{name: os.environ[name] for name in _KEPT if name in os.environ},
            "PATH": os.pathsep.join(map(str, path)),
            "LD_LIBRARY_PATH": f"{view(self.package, chip)}{os.pathsep}{self.package / 'lib'}",
            "TPUC_ROOT": str(self.package),
            # Without it a static constructor of the bm1684x backend reads getenv()'s NULL and dies.
            "PPL_PROJECT_ROOT": str(compiler),
            "PPL_CACHE_PATH": str(home / ".ppl"),
            # For fused attention tpuc-opt builds a kernel with cmake: by the scripts below the one, in the
            # folder that the other names, and without them it dies of a null string.
            "PPL_RUNTIME_PATH": str(compiler / "deps"),
            "PWD": str(workdir.absolute()),
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONNOUSERSITE": "1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(_THREADS)),
            "OMP_WAIT_POLICY": "PASSIVE",
        }

    def tool(self, name: str) -> Path:
        """bin/NAME; UserError where the package has none."""
        return self._file(self.package / "bin" / name)

    def library(self, name: str, chip: str) -> Path:
        """The file that answers to the soname `name` when `chip` is played; UserError where there is none."""
        return self._file(chip_libraries(self.package, chip).get(name, self.package / "lib" / name))

    def _file(self, path: Path) -> Path:
        if not path.is_file():
            raise UserError(
                f"toolchain={str(self.root)!r}: has no {path.relative_to(self.package)}; "
                "`parity toolchain install tpu-mlir --force` makes it anew"
            )
        return path
