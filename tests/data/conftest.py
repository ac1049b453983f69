from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a cache directory of its own."""
    monkeypatch.setenv("MOCOKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
