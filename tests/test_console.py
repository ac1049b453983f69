"""Messages go to stderr; progress is lines in a log, and a bar that leaves nothing behind on a terminal."""

import io
import os
import shlex
import sys
from pathlib import Path

import pytest

from mocokit import console


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the console sees."""
    seconds = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: seconds[0])
    return seconds


def test_a_line_goes_to_stderr_only(capsys):
    console.say("hello [bold] 100%")
    assert capsys.readouterr() == ("", "hello [bold] 100%\n")


def test_a_log_has_a_progress_line_now_and_then(clock, capsys):
    with console.progress("decoding") as report:
        for done in range(1, 41):
            clock[0] += 1.0
            report(done, 4000)
    assert capsys.readouterr().err.splitlines() == [f"decoding: {done} of 4,000" for done in (11, 22, 33)]


def test_a_terminal_has_a_bar_that_goes_away(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with console.progress("decoding") as report:
        report(1, 2)
    assert "decoding" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K")  # the line is erased


def test_muted_it_says_nothing(monkeypatch, clock, capsys):
    monkeypatch.setattr(console, "_muted", False)
    console.mute()
    console.say("hello")
    with console.progress("decoding") as report:
        clock[0] += 60
        report(1, 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("path", ["runs/a", "my photos", "it's", 'a"b', "$HOME", "a;b", "new\nline", "-run", "~", "*"])
def test_printed_commands_name_the_same_paths_when_they_are_pasted(path):
    printed = console.command("embed", [path, Path(path)], "-o features.parquet")
    words = shlex.split(printed)
    assert words[:2] + words[4:] == ["mocokit", "embed", "-o", "features.parquet"]
    assert [os.path.normpath(word) for word in words[2:4]] == [path, path]
    assert not words[2].startswith("-")
    assert console.command("knn", ["runs/digits", "digits"]) == "mocokit knn runs/digits digits"
