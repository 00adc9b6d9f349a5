"""The models of one chip; a process plays one."""

from __future__ import annotations

from .bm import BmRuntime
from .cvi import CviRuntime
from .tensors import Failure, Model


class Chip:
    """Loads models by the kind of their file; `folder` holds the vendor's libraries if the loader does not
    find them, and with `chip` a model that was built for another one is refused."""

    def __init__(self, chip: str = "", folder: str = "") -> None:
        self._chip, self._folder = chip, folder
        self._runtime: CviRuntime | BmRuntime | None = None
        self.models: dict[str, Model] = {}

    def load(self, name: str, path: str, net: str = "", all_tensors: bool = False) -> Model:
        """Load a model under a name; `net` is its name within a combined file, if that differs."""
        kinds = [kind for kind in (CviRuntime, BmRuntime) if path.endswith(kind.suffix)]
        if not kinds:
            raise Failure(f"{path}: is neither a .cvimodel nor a .bmodel")
        if self._runtime is None:
            self._runtime = kinds[0](self._folder)
        if not isinstance(self._runtime, kinds[0]):
            raise Failure(f"{path}: is for another kind of chip than the models before it")
        try:
            self.models[name] = self._runtime.load(path, net or name, self._chip, all_tensors)
        except OSError as error:
            raise Failure(f"{path}: cannot be read ({error.strerror})") from error
        return self.models[name]

    def close(self) -> None:
        """Free models and runtime."""
        for model in self.models.values():
            model.close()
        if self._runtime is not None:
            self._runtime.close()
