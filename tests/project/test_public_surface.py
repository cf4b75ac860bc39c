"""The public surface is what `__all__` says, complete and importable, and importing it stays light."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize("name", ["homeport.client", "homeport.registry", "homeport.sidecar", "homeport.mesh.testing"])
def test_all_names_everything_public_and_nothing_else(name: str) -> None:
    module = importlib.import_module(name)
    public = {key for key, value in vars(module).items() if not key.startswith("_") and not _is_module(value)}
    assert sorted(module.__all__) == module.__all__
    assert set(module.__all__) == public


def _is_module(value: object) -> bool:
    return type(value).__name__ == "module"


def test_importing_the_client_loads_only_the_standard_library_msgspec_and_msgpack() -> None:
    code = (
        "import sys, homeport.client\n"
        "roots = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(roots - set(sys.stdlib_module_names) - {'homeport', '__main__', '__mp_main__'}))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    measuring = ("_", "sitecustomize", "coverage", "$coverage", "a1_coverage")  # not loaded by us
    loaded = [name for name in ast.literal_eval(done.stdout) if not name.startswith(measuring)]
    beneath = {"cython_runtime", "typing_extensions"}  # what msgpack and msgspec bring along themselves
    assert set(loaded) <= {"msgpack", "msgspec", *beneath}


def loaded_by(code: str) -> set[str]:
    """The modules that a new interpreter has loaded after this, but for those that measure it."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(sorted(sys.modules), file=sys.stderr)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(ast.literal_eval(done.stderr))


def test_importing_the_client_loads_little_beyond_what_every_asyncio_program_has() -> None:
    """What an import costs is what it loads; a clock would say something about the machine."""
    beneath = loaded_by("import asyncio, logging, msgspec, msgpack, random")
    ours = loaded_by("import homeport.client") - beneath
    foreign = {name for name in ours if not name.startswith(("homeport", "_"))}
    assert foreign <= {"hashlib", "ipaddress", "zlib"}, (
        "loaded by everybody who imports the client: load it where it is used"
    )
    apart = ("homeport.client.blocking", "homeport.client.integrations", "homeport.client.core.patterns")
    assert not [name for name in ours if name.startswith(apart)], "what has an import of its own"
    assert not [name for name in ours if not name.startswith("homeport.client") and name.startswith("homeport.")]


def test_the_command_s_help_loads_no_loop_no_client_and_no_table() -> None:
    beneath = loaded_by("import click")
    help_ = "import sys\nfrom homeport.mesh.cli import cli\ncli(['--help'], standalone_mode=False)"
    ours = loaded_by(help_) - beneath
    assert {name for name in ours if name.startswith("homeport")} == {"homeport", "homeport.mesh", "homeport.mesh.cli"}
    heavy = {"asyncio", "ssl", "logging", "msgspec", "aiohttp", "rich", "importlib.metadata", "pathlib"}
    assert not heavy & ours


def test_importing_the_library_installs_nothing_global() -> None:
    code = (
        "import asyncio, logging, signal, sys\n"
        "before = (type(asyncio.get_event_loop_policy()), logging.root.handlers[:], signal.getsignal(signal.SIGTERM))\n"
        "import homeport.client, homeport.registry, homeport.sidecar\n"
        "after = (type(asyncio.get_event_loop_policy()), logging.root.handlers[:], signal.getsignal(signal.SIGTERM))\n"
        "assert before == after\n"
        "assert 'uvloop' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", code], check=True)
