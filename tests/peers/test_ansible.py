"""Ansible's Consul modules, as Debian ships them: one playbook, driven by ansible-playbook."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.peers.conftest import RunProgram

PLAYBOOK = Path(__file__).parent / "programs" / "consul.yml"
MODULES = Path("/usr/lib/python3/dist-packages/ansible_collections/community/general/plugins/modules/consul.py")


@pytest.fixture
def playbook_program() -> str:
    program = shutil.which("ansible-playbook")
    if program is None or not MODULES.exists():
        pytest.skip("Debian's ansible is not installed")
    return program


async def test_ansible_registers_services_writes_keys_and_holds_sessions(
    at: str, playbook_program: str, run_program: RunProgram, tmp_path: Path
) -> None:
    host, _, port = at.rpartition(":")
    variables = f"consul_address={host} consul_port={port} ansible_python_interpreter=/usr/bin/python3"
    env = {**os.environ, "ANSIBLE_HOME": str(tmp_path), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_LOCALHOST_WARNING": "false"}
    env |= {"HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
    options = ("-i", "localhost,", "-e", variables)
    printed = await run_program(playbook_program, *options, str(PLAYBOOK), env=env, cwd=tmp_path)
    assert "failed=0" in printed
