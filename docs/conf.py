"""How `make docs` makes pages of these files: the Markdown as it stands, and what docstrings and commands say.

The pages are written for a Git host first, so nothing in them is Sphinx's alone but the blocks of docs/reference. The
list of pages is index.md's: its headings and links are the navigation.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "Homeport"
copyright = "the authors of Homeport"  # noqa: A001 - Sphinx reads this name
version = release = installed("homeport")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "command_reference",
    "docstrings",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"Homeport {release}"
myst_heading_anchors = 4
copybutton_prompt_text = "$ "

# A block is marked with what reads it, whether there are colours for that or not.
suppress_warnings = ["misc.highlighting_failure"]

default_role = "code"
autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Every reference must lead somewhere, but for: what others document, as the build needs no network; type variables;
# bases that only we use; what subscriptions, picks and blocking objects are made of; and the inner parts of the testing
# kit's loop and network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!homeport\.).*"),
    ("py:.*", r"homeport\..*\.([A-Z]|_\w+)"),
    ("py:.*", r"homeport\.client\.(blocking\.life\.Life|subscription\.Feed|picks\.Followed|core\.group\.Endpoint)"),
    ("py:.*", r"homeport\.mesh\.testing\.(datagrams|grounds|listeners|streams|virtual)\.\w+"),
]

_SECTION = re.compile(r"^## (?P<title>.+)$|^- \[[^\]]+\]\((?P<page>[\w/-]+)\.md\)", re.MULTILINE)


def _add_navigation(_app: Sphinx, page: str, source: list[str]) -> None:
    """Give index.md a hidden table of contents for each of its headings, of the pages that are linked beneath it."""
    if page == "index":
        source[0] += "".join(_tables_of_contents(source[0]))


def _tables_of_contents(text: str) -> Iterator[str]:
    sections: dict[str, list[str]] = {}
    title = ""
    for found in _SECTION.finditer(text):
        if found["title"]:
            title = found["title"]
        else:
            sections.setdefault(title, []).append(found["page"])
    for title, pages in sections.items():
        yield "\n```{toctree}\n:hidden:\n:caption: " + title + "\n\n" + "\n".join(pages) + "\n```\n"


def setup(app: Sphinx) -> None:
    app.connect("source-read", _add_navigation)
