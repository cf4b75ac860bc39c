"""What autodoc is told of our docstrings: single backticks are code, indented blocks too, and fields are described by
the comment behind them. References to where a public name is defined lead to where it is documented.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from typing import Any

import msgspec.inspect
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

PUBLIC = ("homeport.client", "homeport.registry", "homeport.sidecar", "homeport.mesh.testing")


def _public_names() -> dict[str, str]:
    """By where each public object is defined: where it is documented."""
    names: dict[str, str] = {}
    for module in map(importlib.import_module, PUBLIC):
        for name in module.__all__:
            value = getattr(module, name)
            defined = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', name)}"
            names.setdefault(defined, f"{module.__name__}.{name}")
    return names


NAMES = _public_names()


def _find_public(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    public = NAMES.get(str(node.get("reftarget")))
    if node.get("refdomain") != "py" or public is None:
        return None
    domain = env.domains.python_domain
    return domain.resolve_xref(env, str(node["refdoc"]), app.builder, "obj", public, node, content)


def _read(_app: Sphinx, what: str, _name: str, value: Any, _options: Any, lines: list[str]) -> None:
    if what == "class" and "Attributes:" not in lines:
        lines += _fields(value)
    lines[:] = _with_code_blocks(lines)


def _rejoin(_app: Sphinx, _what: str, _name: str, _value: Any, _options: Any, lines: list[str]) -> None:
    """Napoleon takes what stands before a colon in a property's first line for its type."""
    for number, line in enumerate(lines):
        if line.startswith(":type: "):
            del lines[number]
            lines[0] = f"{line.removeprefix(':type: ')}: {lines[0]}"
            return


def _fields(owner: type) -> list[str]:
    """A section on the fields of a struct or dataclass: what the lines that declare them say in their comments."""
    if not (msgspec.inspect.is_struct_type(owner) or dataclasses.is_dataclass(owner)):
        return []
    source = inspect.getsource(owner)
    found = re.findall(r"^    ([a-z]\w*): [^#\n]*# (?!noqa|type:)(.*)$", source, re.MULTILINE)
    return ["", "Attributes:", *(f"    {name}: {comment}" for name, comment in found), ""] if found else []


def _with_code_blocks(lines: list[str]) -> list[str]:
    """A block that is indented after an empty line is code, as in Markdown; reStructuredText wants two colons."""
    told: list[str] = []
    before = ""  # the last line that is not empty
    for number, line in enumerate(lines):
        begins = line.startswith("    ") and number > 0 and not lines[number - 1].strip()
        if begins and not before.startswith((" ", ":", "..")) and not before.endswith("::"):
            told += ["::", ""]
        before = line if line.strip() else before
        told.append(line)
    return told


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", _read, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", _rejoin, priority=600)  # after it
    app.connect("missing-reference", _find_public)
    return {"parallel_read_safe": True}
