"""Messages go to stderr; progress is lines in a log, and a bar that leaves nothing behind on a terminal."""

import io
import os
import shlex
import sys
from contextlib import suppress
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


def test_bars_inside_bars_share_the_terminal(monkeypatch):
    """The outer one is there before, during and after; an inner one that failed leaves nothing."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")

    def look() -> str:
        before = len(terminal.getvalue())
        console._bars.refresh()
        return terminal.getvalue()[before:]

    with console.progress("training") as outer:
        outer(1, 4, "epoch 1/4, loss 42 % of chance")
        assert "epoch 1/4, loss 42 % of chance" in look()
        for fails in (True, False):
            with suppress(KeyError), console.progress("encoding") as inner:
                inner(1, 2)
                drawn = look()
                assert "epoch 1/4" in drawn
                assert "encoding" in drawn
                if fails:
                    raise KeyError
            drawn = look()
            assert "epoch 1/4" in drawn
            assert "encoding" not in drawn
        outer(2, 4)
        assert "training" in look()
    assert terminal.getvalue().endswith("\x1b[2K")
    assert console._bars is None
    with console.progress("another") as report:
        report(1, 2)
        assert "another" in look()


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
