"""Each of the two exceptions is one line on stderr and an exit code."""

import pytest

from mocokit.cli import main
from mocokit.errors import Interrupted, UserError


@pytest.mark.parametrize(("error", "code"), [(UserError, 2), (Interrupted, 130)])
def test_exit_codes(error, code, monkeypatch, capfd):
    def fail(*_: object) -> None:
        raise error("one\n  thing")

    monkeypatch.setattr("mocokit.cli._run", fail)
    assert main(["knn"]) == code
    assert capfd.readouterr() == ("", "mocokit: one thing\n")
