import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_cache_for_all_tests(tmp_path_factory):
    """No test reads or fills the user's cache; commands started by tests inherit this."""
    os.environ["MOCOKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def cifar10() -> Path:
    """The archive of real photographs that $MOCOKIT_CIFAR10 names."""
    path = os.environ.get("MOCOKIT_CIFAR10")
    if not path:
        pytest.skip("MOCOKIT_CIFAR10 is not set")
    return Path(path)
