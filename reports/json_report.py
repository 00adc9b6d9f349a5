"""A result as one JSON file, and back. The schema is in SCHEMA.md beside this file.

The file is strict JSON: a float that is not finite is `{"$float": "inf"}` (or `-inf`, `nan`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parity.harness.comparison import Result
from parity.harness.errors import UserError

NOT_FINITE = "$float"


def write_json(result: Result, path: str | Path) -> Path:
    """Write `result`; the file appears whole or not at all. UserError when the place cannot be written."""
    return write_text(_lines(result.to_json()), path)


def read_json(path: str | Path) -> Result:
    """Read what `write_json` wrote; UserError for a file that is missing, not JSON or of another schema."""
    try:
        data = json.loads(Path(path).read_bytes(), object_hook=_float_back)
    except OSError as error:
        raise UserError(f"report={str(path)!r}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"report={str(path)!r}: not JSON ({error}); give a report.json") from None
    if not isinstance(data, dict) or "schema" not in data:
        raise UserError(f"report={str(path)!r}: not a report of parity; give a report.json")
    try:
        return Result.from_json(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"report={str(path)!r}: schema {data['schema']} but damaged ({type(error).__name__}: {error}); "
            "write it again from the traces"
        ) from None


def dumps(data: Any) -> str:
    """Strict JSON text, on one line, of plain data, numpy scalars and paths."""
    try:
        return json.dumps(data, allow_nan=False, default=_plain, separators=(",", ":"))
    except ValueError:  # an Inf or NaN somewhere: the slow way
        return json.dumps(_finite_only(data), allow_nan=False, separators=(",", ":"))


def _lines(value: Any, depth: int = 0) -> str:
    """JSON with a line per field down to the records, and a line per record: small, and fit for `diff`."""
    inner, outer = "\n" + " " * (depth + 1), "\n" + " " * depth
    if depth == 0 or (depth == 2 and isinstance(value, Mapping)):
        fields = [f"{json.dumps(key)}: {_lines(item, depth + 1)}" for key, item in value.items()]
        return "{" + inner + ("," + inner).join(fields) + outer + "}" + ("\n" if depth == 0 else "")
    if depth in (1, 3) and isinstance(value, list) and value:
        return "[" + inner + ("," + inner).join(_lines(item, depth + 1) for item in value) + outer + "]"
    return dumps(value)


def write_text(text: str, path: str | Path) -> Path:
    """Write through a neighbouring file and a rename, so that a reader never sees half of it."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(text, encoding="utf-8", errors="surrogatepass")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"out={str(path)!r}: cannot be written ({error.strerror}); choose another place with --out"
        ) from None
    return path


def _plain(value: Any) -> Any:
    """What json does not know: numpy scalars and arrays, paths, mappings."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no place in a report: {value!r}")


def _finite_only(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {NOT_FINITE: str(float(value))}
    if isinstance(value, Mapping):
        return {key: _finite_only(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite_only(item) for item in value]
    if value is None or isinstance(value, str | int):
        return value
    return _finite_only(_plain(value))


def _float_back(data: dict[str, Any]) -> Any:
    return float(data[NOT_FINITE]) if data.keys() == {NOT_FINITE} else data
