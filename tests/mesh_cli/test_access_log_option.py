"""`homeport serve --access-log`: lines of JSON, and nothing else in them."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # the fixtures' types; at run time pytest alone knows conftest
    from tests.mesh_cli.conftest import Processes


@pytest.mark.parametrize("asked", [True, False])
def test_requests_are_logged_where_that_was_asked_for_and_only_there(homeport: Processes, asked: bool) -> None:
    serving = homeport.serve(where=("--memory", *(["--access-log"] if asked else [])))
    with urllib.request.urlopen(f"http://{serving.http}/v1/status/leader?token=hush", timeout=30) as answer:
        assert answer.status == 200
    serving.process.terminate()
    said, _ = serving.process.communicate(timeout=30)
    lines = [json.loads(line) for line in said.splitlines()]
    assert [(line["status"], line["target"]) for line in lines] == [(200, "/v1/status/leader?token=***")] * asked
