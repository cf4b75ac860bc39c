"""The examples of a cluster say what the command line takes and systemd accepts, as far as that can be seen here."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from homeport.mesh.commands.serve import serve
from homeport.registry.store.etcd_address import parse

EXAMPLE = Path(__file__).parents[2] / "examples" / "cluster"


def taken(words: list[str]) -> dict[str, object]:
    """The options of a `homeport serve`, as it understands them."""
    assert words[0] == "serve"
    with serve.make_context("serve", words[1:]) as context:
        return dict(context.params)


def test_the_compose_file_starts_three_replicas_over_the_members_it_starts() -> None:
    text = (EXAMPLE / "compose.yaml").read_text()
    members = re.findall(r"^  (etcd-\d):\n    build", text, re.MULTILINE)
    commands = [taken(json.loads(found)) for found in re.findall(r'command: (\["serve".*?\])\n', text, re.DOTALL)]
    assert len(members) == len(commands) == 3
    for options in commands:
        assert parse(str(options["store"])).endpoints == tuple(f"{member}:2379" for member in members)
    assert "\t" not in text


def test_the_unit_is_one_that_systemd_accepts(tmp_path: Path) -> None:
    text = (EXAMPLE / "homeport.service").read_text()
    unit = ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # as the documentation says
    unit.read_string(text)
    program, *words = shlex.split(unit["Service"]["ExecStart"])
    assert program.endswith("/homeport")
    taken(words)
    if shutil.which("systemd-analyze"):
        here = tmp_path / "homeport.service"
        here.write_text(text.replace(program, sys.executable))
        verified = subprocess.run(["systemd-analyze", "verify", "--man=no", here], capture_output=True, text=True)
        complaints = [line for line in verified.stderr.splitlines() if "homeport.service" in line]
        assert complaints == []


@pytest.mark.parametrize("name", ["homeport.service", "etcd.env"])
def test_every_line_of_the_examples_is_a_setting(name: str) -> None:
    for line in (EXAMPLE / name).read_text().splitlines():
        assert re.fullmatch(r"|#.*|\[\w+\]|\w+=.+", line), line
