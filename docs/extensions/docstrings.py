"""What autodoc is told of our docstrings: single backticks are code, indented blocks too, and fields are described by
the comment behind them. References to where a public name is defined lead to where it is documented.
"""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import msgspec
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


def _keep_fields(_app: Sphinx, _what: str, name: str, value: Any, skip: bool, _options: Any) -> bool | None:
    """Show the fields of a struct, unless its docstring describes them already."""
    owner = getattr(value, "__objclass__", None)
    if isinstance(owner, type) and issubclass(owner, msgspec.Struct) and not name.startswith("_"):
        return "Attributes:" in (owner.__doc__ or "")
    return None


def _read(_app: Sphinx, what: str, name: str, _value: Any, _options: Any, lines: list[str]) -> None:
    if what == "attribute" and not any(lines):
        lines[:] = [_comment_behind(name)]
    lines[:] = _with_code_blocks(lines)


def _comment_behind(name: str) -> str:
    """What the line that declares a field says in its comment."""
    owner_name, _, field = name.rpartition(".")
    module, _, owner = owner_name.rpartition(".")
    try:
        source = inspect.getsource(getattr(importlib.import_module(module), owner))
    except (ImportError, AttributeError, OSError, TypeError):
        return ""
    found = re.search(rf"^    {field}: [^#\n]*# (?!noqa|type:)(.*)$", source, re.MULTILINE)
    return found[1] if found else ""


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
    app.connect("autodoc-skip-member", _keep_fields)
    app.connect("missing-reference", _find_public)
    return {"parallel_read_safe": True}
