"""An entry of the cache is built by one process and seen only whole, whatever happens to the others."""

import contextlib
import gc
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mocokit.data.cache import _alone, _default_directory, cache_directory, entries, hold, locked, remove
from mocokit.errors import UserError
from tests.data.stores import all_pixels, open_images
from tests.helpers import archive, class_folders, write_images


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MOCOKIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cannot write the image cache .*set MOCOKIT_CACHE") as caught:
        open_images(class_folders(tmp_path / "data"))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
@pytest.mark.parametrize("suffix", ["", ".tar.xz"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, cache: Path, suffix: str) -> None:
    """A limit on the size of files stands in for the full disk: both fail in write()."""
    data = write_images(tmp_path / "data", [f"{i}.png" for i in range(20)], height=60, width=60)
    if suffix:
        data = archive(data, tmp_path / f"data{suffix}")
    program = """
import resource, sys
from mocokit.data.store import open_store
from mocokit.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    open_store(sys.argv[1], image_size=64)
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program, str(data)], capture_output=True, text=True)
    assert done.stderr == ""
    assert "cannot write the image cache" in done.stdout
    assert "MOCOKIT_CACHE" in done.stdout
    assert list((cache / "images").iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"MOCOKIT_CACHE": "a", "XDG_CACHE_HOME": "b"}, "a"),
        ({"XDG_CACHE_HOME": "b"}, "b/mocokit"),
        ({}, "home/.cache/mocokit"),
        ({"MOCOKIT_CACHE": "~/mine"}, "home/mine"),
        ({"XDG_CACHE_HOME": "~"}, "home/mocokit"),
    ],
)
def test_where_the_cache_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("MOCOKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    _default_directory.cache_clear()
    for name, value in variables.items():
        monkeypatch.setenv(name, value if value.startswith("~") else str(tmp_path / value))
    assert open_images(class_folders(tmp_path / "data")).path.parent == tmp_path / expected / "images"


@pytest.mark.parametrize("home", ["", "/nowhere", None])
def test_without_a_home_the_cache_is_temporary_which_is_told_once(tmp_path, monkeypatch, capfd, home):
    for name in ("MOCOKIT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr("os.path.expanduser", lambda path: path if home is None else path.replace("~", home))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    _default_directory.cache_clear()
    try:
        expected = tmp_path / f"mocokit-{os.getuid()}"
        assert cache_directory() == cache_directory() == expected
        assert expected.is_dir()
        told = capfd.readouterr().err
        assert told.count("\n") == 1
        assert f"decoded images are kept in {expected}; MOCOKIT_CACHE names" in told
    finally:
        _default_directory.cache_clear()
    monkeypatch.setenv("MOCOKIT_CACHE", "~/x")
    if home != "/nowhere":
        with pytest.raises(UserError, match=r"MOCOKIT_CACHE .*no home directory here; write the whole path"):
            cache_directory()


@pytest.mark.parametrize("made", ["by somebody", "open to all", "a link", "by us"])
def test_a_folder_that_others_may_write_to_is_not_the_cache(tmp_path, monkeypatch, made):
    """Among everybody's temporary files anybody can make it first, and change what is learned from."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("mocokit.data.cache.home_directory", lambda: None)
    place = tmp_path / f"mocokit-{os.getuid()}"
    if made == "a link":
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    else:
        (place / "images" / "kept").mkdir(parents=True)
        place.chmod(0o700)
        if made == "open to all":
            place.chmod(0o777)
        elif made == "by somebody":
            somebody = os.getuid() + 1
            found = os.stat_result((*place.lstat()[:4], somebody, *place.lstat()[5:]))
            monkeypatch.setattr("pathlib.Path.lstat", lambda path: found)
    _default_directory.cache_clear()
    try:
        root = _default_directory()
    finally:
        _default_directory.cache_clear()
    monkeypatch.undo()
    assert (root == place) == (made in ("by us", "open to all"))
    assert root.parent == tmp_path
    assert (root / "images" / "kept").exists() == (made == "by us")
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


SLOW_BUILD = """
import os, sys, time
from mocokit.data import decode_pool
from mocokit.data.store import open_store
decode = decode_pool.decode
def slow(data, *options):
    open(os.path.join(sys.argv[2], str(os.getpid())), "w").close()
    time.sleep(0.05)
    return decode(data, *options)
decode_pool.decode = slow
open_store(sys.argv[1], image_size=8, workers=2)
"""


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_build_leaves_no_entry_and_no_process(
    tmp_path: Path, cache: Path, signal_number: signal.Signals
) -> None:
    root = write_images(tmp_path / "data", [f"{i:03d}.png" for i in range(300)])
    seen = tmp_path / "workers"
    seen.mkdir()
    command = [sys.executable, "-c", SLOW_BUILD, str(root), str(seen)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    try:
        wait_for(lambda: len(list(seen.iterdir())) == 2)
        decoders = [int(path.name) for path in seen.iterdir()]
        assert process.pid not in decoders
        assert all(map(alive, decoders))
        if signal_number == signal.SIGINT:
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        else:
            process.kill()
        start = time.monotonic()
        _, errors = process.communicate(timeout=20)
        assert time.monotonic() - start < 3  # to finish the chunks under way would take longer
        wait_for(lambda: not any(map(alive, decoders)))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    left = list((cache / "images").iterdir())
    if signal_number == signal.SIGINT:
        assert left == []
        assert errors.count(b"KeyboardInterrupt") == 1  # the workers say nothing
    else:
        assert [path.name.endswith(".building") for path in left] == [True]
    store = open_images(root, image_size=8)
    assert not store.from_cache
    assert len(store.splits["train"]) == 300
    assert list((cache / "images").iterdir()) == [store.path]  # what was left behind is removed


BUILD = """
import sys
from pathlib import Path
from mocokit.data import decode_pool
from mocokit.data.store import open_store
decode, calls = decode_pool.decode, []
def counted(data, *options):
    calls.append(None)
    return decode(data, *options)
decode_pool.decode = counted
Path(sys.argv[2]).touch()
while len(list(Path(sys.argv[2]).parent.iterdir())) < int(sys.argv[3]):
    pass
store = open_store(sys.argv[1], image_size=lambda median: 8, workers=0)
print(store.path, store.fingerprint, len(calls))
"""


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_that_open_the_same_data_at_once_decode_it_once(tmp_path: Path, cache: Path, processes: int) -> None:
    root = class_folders(tmp_path / "data", train=100)
    (tmp_path / "ready").mkdir()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD, str(root), str(tmp_path / "ready" / str(i)), str(processes)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    results = [process.communicate(timeout=60)[0].split() for process in started]
    assert [process.returncode for process in started] == [0] * processes
    store = open_images(root, image_size=8)
    assert store.from_cache
    assert {(path, fingerprint) for path, fingerprint, _ in results} == {(str(store.path), store.fingerprint)}
    images = sum(map(len, store.splits.values()))
    assert sorted(int(calls) for *_, calls in results) == [0] * (processes - 1) + [images]
    assert list((cache / "images").iterdir()) == [store.path]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_builder_does_not_stop_the_one_that_waits(tmp_path: Path, cache: Path) -> None:
    """Its lock ends with it, and what it left is removed, also by whoever opens other data."""
    root = write_images(tmp_path / "data", [f"{i:03d}.png" for i in range(300)])
    (tmp_path / "workers").mkdir()
    command = [sys.executable, "-c", SLOW_BUILD, str(root), str(tmp_path / "workers")]
    builder = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    wait_for(lambda: list((tmp_path / "workers").iterdir()))
    program = "import sys; from mocokit.data.store import open_store; print(open_store(sys.argv[1], image_size=8).path)"
    waiting = subprocess.Popen(
        [sys.executable, "-c", program, str(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert waiting.stderr is not None
    assert "waiting for another process that decodes " in waiting.stderr.readline()
    os.killpg(builder.pid, signal.SIGKILL)
    path = waiting.communicate(timeout=60)[0].strip()
    assert waiting.returncode == 0
    builder.communicate()
    assert [str(entry) for entry in (cache / "images").iterdir()] == [path]
    shutil.move(path, cache / "images" / f".{Path(path).name}.building")
    other = open_images(write_images(tmp_path / "other", ["1.png"]))
    assert list((cache / "images").iterdir()) == [other.path]


def test_what_a_killed_build_left_is_removed_by_the_next_command_that_opens_anything(tmp_path, cache, capfd):
    store = open_images(class_folders(tmp_path / "data"))
    leftover = cache / "images" / ".birds-0123-4567.building"
    leftover.mkdir()
    (leftover / "staging.bin").write_bytes(b"half")
    assert open_images(tmp_path / "data").from_cache
    assert list((cache / "images").iterdir()) == [store.path]
    told = capfd.readouterr().err
    assert told == f"{cache / 'images'}: removed what killed commands left half decoded (1, first birds-0123)\n"


def test_an_entry_that_is_used_or_built_is_not_removed(tmp_path, cache):
    """Nor is one that is being removed opened."""
    store = open_images(class_folders(tmp_path / "data"))
    entry, pixels = store.path, all_pixels(store)
    assert [(found.path, found.in_use) for found in entries(cache)] == [(entry, True)]
    assert not remove(entry)
    elsewhere = pickle.loads(pickle.dumps(store.splits["train"]))
    del store
    gc.collect()
    assert not remove(entry)
    assert (elsewhere.batch(range(len(elsewhere))) == pixels).all()
    del elsewhere
    gc.collect()
    with locked(cache / "images", entry.name.rpartition("-")[0]):
        assert not remove(entry)
    with _alone(entry), pytest.raises(BlockingIOError):
        hold(entry)
    assert [(found.path, found.in_use) for found in entries(cache)] == [(entry, False)]
    assert remove(entry)
    assert list((cache / "images").iterdir()) == []
    assert not remove(entry)


@pytest.mark.skipif(os.name == "nt", reason="nothing is locked there")
def test_who_looks_whether_an_entry_is_used_keeps_nobody_from_using_it(tmp_path):
    def look():
        with _alone(tmp_path):
            looking.set()
            time.sleep(0.01)

    looking = threading.Event()
    thread = threading.Thread(target=look)
    thread.start()
    assert looking.wait(10)
    held = hold(tmp_path)
    thread.join()
    with pytest.raises(BlockingIOError), _alone(tmp_path):
        pass
    os.close(held)


def test_a_removal_that_is_killed_is_a_leftover(tmp_path, cache, monkeypatch):
    entry = open_images(class_folders(tmp_path / "data")).path
    gc.collect()

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove(entry)
    assert [path.name for path in (cache / "images").iterdir()] == [f".{entry.name}.building"]
    assert not open_images(tmp_path / "data").from_cache
    assert list((cache / "images").iterdir()) == [entry]
