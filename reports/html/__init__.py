"""The report as one self-contained page: template, style and script beside this file, inlined.

The page makes no request (its own policy forbids it). Everything that came from a model or a file is shown as
text: the template escapes, the data is JSON with `<`, `>` and `&` escaped, and the script only sets text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from parity.harness.comparison import Result

from .. import words
from ..json_report import dumps, write_text
from ..said import Said
from .pack import pack
from .view import view

HERE = Path(__file__).parent
SCRIPTS = ("core.js", "plots.js", "heatmap.js", "table.js", "detail.js", "main.js")


def write_html(result: Result, path: str | Path) -> Path:
    """Write the page; it appears whole or not at all. UserError when the place cannot be written."""
    return write_text(render(result), path)


def render(result: Result) -> str:
    """The page as text."""
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    said = Said(result)
    script = f'(function () {{\n"use strict";\n{script}\n}})();\n'
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=Markup(_digest(script)),
            data=Markup(embed({"candidates": [pack(comparison) for comparison in result]})),
            candidates=[view(comparison, said) for comparison in result],
            **_head(result),
        )
    )


def embed(data: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element or a line."""
    text = dumps(data)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _digest(script: str) -> str:
    """The hash by which the page's own policy knows its one script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: Any) -> Any:
    """Every expression of the template passes here: control characters become visible escapes."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return words.visible(value, keep="\n\t")


def _head(result: Result) -> Mapping[str, Any]:
    verdicts = [f"{comparison.verdict.upper()} {comparison.label}" for comparison in result]
    return {
        "title": ", ".join(verdicts) or "INCONCLUSIVE no candidate",
        "provenance": words.flatten(result.provenance),
        "files": {kind: str(path) for kind, path in result.files.items()},
    }
