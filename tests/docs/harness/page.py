"""A page and its reader: every block is run, in order, in one folder, on ports that stand for those the page names.

What a block is, its language says: `python` runs in the page's session (with `def test_` in it: by pytest), `console`
and `sh` in a shell, `toml` and `json` are read by what reads them in earnest, `text` is a picture. A Python block whose
first line is `# name.py` is that file. Comments in front of a block, which readers do not see, say the rest:

    <!-- file: upstreams.tmpl -->       the next block is this file
    <!-- terminal: registry -->         the next block's command goes on in a terminal of this name
    <!-- ctrl-c: registry -->           Ctrl-C is pressed there, or: <!-- ended: orders-1 137 --> it ends by itself
    <!-- check: dnsmasq --test ... -->  a command that comes to end well, at the latest within a minute
    <!-- soon -->                       the next block comes to print what is shown, at the latest within a minute
    <!-- goes on -->                    the next block of Python does not end by itself: it is ended after a second
    <!-- setup: python ... -->          something the page takes for granted
    <!-- needs: consul -->              the next block or check needs a module or program that is not everywhere
    <!-- installing: reason -->         the next block installs: it runs where a new user's day is tested
    <!-- not run: reason -->            the next block cannot run here
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Self

from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer, RawFencedCodeBlockLexer

from tests.docs.harness.loaders import LOADERS, read_commands
from tests.docs.harness.ports import Ports
from tests.docs.harness.session import Session
from tests.docs.harness.shell import INSTALL_S, PATIENCE_S, Command, Shell, Wrong, commands

ROOT: Final = Path(__file__).parents[3]
_MARKS: Final = ("file", "terminal", "soon", "goes on", "needs", "installing", "not run")
_ACTS: Final = ("check", "ctrl-c", "ended", "setup")
_fences = RawFencedCodeBlockLexer(re.compile(r"(?P<language>[^\n]*)\n"))
_comments = DirectiveInHTMLCommentLexer("|".join((*_MARKS, *_ACTS)), r"[^\n]*?")


class Skipped(NamedTuple):
    """A block that was not run, and why."""

    place: str
    reason: str


class Reader:
    """Whoever follows one page.

    Args:
        folder: where they work; empty at first.
        python: the interpreter that has Homeport.
        installing: whether they install what the page says, or have it already.
    """

    def __init__(self, folder: Path, *, python: Path | None = None, installing: bool = False) -> None:
        self.folder = folder
        self.skipped: list[Skipped] = []
        self.ran = 0
        seed = random.randrange(1 << 32)  # two readers with the same seed would take the same ports
        print(f"the seed of the ports is {seed}")
        self._ports = Ports(random.Random(seed))
        self._python = python or Path(sys.executable)
        self._installing = installing
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HOMEPORT_", "PYTEST_"))}
        self._environment = inherited | self._ports.variables()
        self._environment |= {
            "HOME": os.environ["HOME"] if installing else str(folder),
            "XDG_STATE_HOME": str(folder / ".state"),
            "PATH": f"{self._python.parent}:{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "160",
        }
        self._shell = Shell(folder, self._ports, self._environment)
        self._session: Session | None = None
        self._marks: dict[str, str] = {}
        self._tests = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        """Leave everything: what still runs is ended; it must run until now, unless the page is wrong already."""
        if self._session is not None:
            self._session.close()
        ended = self._shell.close()
        if ended and kind is None:
            raise Wrong(ended)

    def comment(self, example: Example) -> str:
        """Do what a comment says, or keep it for the next block."""
        what, argument = example.region.lexemes["directive"], example.region.lexemes["arguments"].strip()
        if what in _MARKS:
            self._marks[what] = argument
        elif what == "ctrl-c":
            self._shell.interrupt(argument)
        elif what == "ended":
            name, status = argument.split()
            self._shell.ended(name, int(status))
        elif what == "check":
            if not self._skip(example):
                self._shell.run([Command(argument, None)], soon=True)
        else:
            return self._python_block(example.region.lexemes["source"], example)
        return ""

    def block(self, example: Example) -> str:
        """Run a block; return what is wrong with it, or nothing."""
        language, source = example.region.lexemes["language"].strip(), str(example.region.lexemes["source"])
        marks = dict(self._marks)
        if language == "text":
            return ""
        if self._skip(example):
            if language in ("console", "sh"):
                read_commands(source)
            return ""
        self.ran += 1
        named = re.match(r"# ([\w-]+\.\w+)\n", source) if language == "python" else None
        if name := marks.get("file") or (named[1] if named else ""):
            (self.folder / name).write_text(self._ports.fill(source))
        if language in LOADERS:
            with contextlib.chdir(self.folder):  # files that it names are there
                LOADERS[language](source, self.folder)
        elif name and language == "python":
            compile(source, name, "exec")
        elif name:
            pass  # it is right if what reads it takes it, which a later block or check shows
        elif language == "python":
            if "def test_" in source:
                return self._test_block(source)
            return self._python_block(source, example, goes_on="goes on" in marks)
        elif language in ("console", "sh"):
            block = commands(source, language)
            if "terminal" in marks:
                self._shell.open(marks["terminal"], block)
            else:
                patience_s = INSTALL_S if "installing" in marks else PATIENCE_S
                self._shell.run(block, soon="soon" in marks, patience_s=patience_s)
        else:
            return f"nobody knows how to run {language or 'a block without a language'}; `text` is for what is none"
        return ""

    def _skip(self, example: Example) -> bool:
        """Whether what stands here is not run, for the reason that a comment before it gives."""
        marks, self._marks = self._marks, {}
        needed = marks.get("needs", "")
        if "not run" in marks:
            reason = marks["not run"]
        elif "installing" in marks and not self._installing:
            reason = f"installs: {marks['installing']}"
        elif needed and importlib.util.find_spec(needed) is None and shutil.which(needed) is None:
            reason = f"needs {needed}, which is not installed here"
        else:
            return False
        self.skipped.append(Skipped(f"{_shown(Path(example.path))}:{example.line}", reason))
        return True

    def _python_block(self, source: str, example: Example, *, goes_on: bool = False) -> str:
        if self._session is None:
            self._session = Session(self._python, self.folder, self._environment)
        return self._session.run(self._ports.fill(source), example.path, example.line, goes_on=goes_on)

    def _test_block(self, source: str) -> str:
        """Run the tests that a block has, as a user would who has written those before it too."""
        file = self.folder / "test_page.py"
        file.write_text(f"{self._tests}\n\n{source}")
        names = re.findall(r"def (test_\w+)", source)
        self._tests = file.read_text()
        unset = "ignore:The configuration option"  # pytest-asyncio's, of a run that has no configuration
        options = ("-q", "-p", "no:cacheprovider", "-W", "error", "-W", unset, "--asyncio-mode=auto", "--rootdir=.")
        done = subprocess.run(
            [self._python, "-m", "pytest", *options, file.name, "-k", " or ".join(names)],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return "" if done.returncode == 0 and f"{len(names)} passed" in done.stdout else done.stdout + done.stderr


def follow(page: Path, reader: Reader) -> None:
    """Do all that a page says.

    Raises:
        SybilFailure, Wrong: something is not as it says; the error names the line.
    """
    sybil = Sybil([Parse(reader)], path=str(page.parent), pattern=page.name)
    for example in sybil.parse(page):
        try:
            example.evaluate()
        except Exception as error:
            error.add_note(f"at {_shown(page)}, line {example.line}")
            raise


class Parse:
    """What of a page is done: comments and fenced blocks."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __call__(self, document: Document) -> Iterable[Region]:
        for region in _comments(document):
            yield Region(region.start, region.end, None, self._reader.comment, region.lexemes)
        for region in _fences(document):
            yield Region(region.start, region.end, None, self._reader.block, region.lexemes)


def _shown(page: Path) -> Path:
    return page.relative_to(ROOT) if page.is_relative_to(ROOT) else page


def pages() -> Iterator[Path]:
    """Every page there is."""
    yield from sorted(ROOT.glob("*.md"))
    yield from sorted((ROOT / "examples").glob("*/README.md"))
    yield from sorted((ROOT / "docs").glob("*.md"))
