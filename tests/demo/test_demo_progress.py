"""What people see while the demo runs."""

from __future__ import annotations

import pytest

from homeport.client import Instance
from homeport.mesh.demo.progress import EVENTS_SHOWN, Lines, Progress, Screen, Silent, View
from homeport.mesh.demo.report import Tally

VIEW: View = {
    "feed": (
        Instance(service="feed", id="feed-1", version="v1", state="draining"),
        Instance(service="feed", id="feed-2", version="v2"),
    )
}


def play(progress: Progress) -> None:
    tally = Tally()
    tally.done("feed", 12.0, "feed-1")
    progress.tell("SIGKILL to feed-1")
    progress.show(tally, VIEW)
    progress.show(tally, None)
    progress.close()


def test_a_terminal_sees_services_counts_and_events(capsys: pytest.CaptureFixture[str]) -> None:
    play(Screen())
    out, err = capsys.readouterr()
    assert out == ""
    for shown in ("feed", "v1, v2", "1 requests, 0 failed, p50 12 ms", "SIGKILL to feed-1"):
        assert shown in err


def test_a_terminal_sees_only_the_last_events(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    for number in range(EVENTS_SHOWN + 1):
        screen.tell(f"event {number}.")
    screen.close()
    err = capsys.readouterr().err
    assert "event 0." not in err
    assert f"event {EVENTS_SHOWN}." in err


def test_a_pipe_sees_lines_and_a_registry_that_is_away(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.show(Tally(), None)
    play(lines)
    out, err = capsys.readouterr()
    assert out == ""
    assert "SIGKILL to feed-1\n" in err
    assert "0 requests, 0 failed" in err
    assert "registry away" in err
    assert "\x1b" not in err


def test_programs_see_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    play(Silent())
    assert capsys.readouterr() == ("", "")
