import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from tests.tiny_runs import LEAN, TINY, TinyRun, coloured_data

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tiny tensors gain nothing from threads
os.environ["PYTHONPATH"] = os.pathsep.join([str(LEAN), *filter(None, [os.environ.get("PYTHONPATH")])])
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job; what tests start would, too
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("mocokit", deadline=None)  # a busy machine is no failure
settings.load_profile("mocokit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long comes first, so that of two workers none waits for the other's last test."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True, scope="session")
def _one_cache_for_all_tests(tmp_path_factory):
    """No test reads or fills the user's cache; commands started by tests inherit this."""
    os.environ["MOCOKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _threads_stay():
    """No test leaves torch another number of threads: with it the next ones have other last digits."""
    torch = sys.modules.get("torch")
    before = torch and torch.get_num_threads()
    yield
    assert not torch or torch.get_num_threads() == before


@pytest.fixture(scope="session")
def cifar10() -> Path:
    """The archive of real photographs that $MOCOKIT_CIFAR10 names."""
    path = os.environ.get("MOCOKIT_CIFAR10")
    if not path:
        pytest.skip("MOCOKIT_CIFAR10 is not set")
    return Path(path)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> TinyRun:
    """A finished run on labelled colour images. Read it only."""
    import mocokit

    folder = tmp_path_factory.mktemp("tiny")
    data = coloured_data(folder / "data")
    result = mocokit.pretrain(str(data), out=str(folder / "run"), **TINY)
    return TinyRun(data, folder / "run", result)


@pytest.fixture(scope="module")
def rgb():
    """A colour encoder with random weights. Read it only."""
    from tests.encoders import random_encoder

    return random_encoder(3)


@pytest.fixture(scope="module")
def gray():
    """A grayscale encoder with random weights. Read it only."""
    from tests.encoders import random_encoder

    return random_encoder(1)
