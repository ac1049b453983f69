"""This machine: cores, threads, memory, devices and installed versions. Imports torch only where it is needed."""

import ctypes
import os
import platform
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

import mocokit
from mocokit.config import DeviceName
from mocokit.errors import UserError

STATISTICS = Path("/proc/stat")  # what Linux counts
LOOK_SECONDS, LONG_AGO = 0.5, 10.0  # between looks, at least; what came before says nothing of now
LITTLE_USE = 0.4  # share of a core that others may use without costing us a thread
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def usable_cores() -> int:
    """Cores by the process's affinity and, in a container, by its quota of processor time; at least 1."""
    with warnings.catch_warnings():  # of a machine without shared memory, which nothing here needs
        warnings.simplefilter("ignore")
        from joblib import cpu_count  # takes a sixth of a second, and decoding processes do not need it

    return int(cpu_count())


def cpu_name() -> str:
    """The processor's name as the system gives it, such as ``AMD EPYC 7B13``."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


class SharedCores:
    """How many threads torch computes with: as many as it may, fewer while other programs need the cores.

    Threads share every operation and wait for the slowest. One that the system has put aside for another program keeps
    all waiting, thousands of times a step: beside one busy thread two of ours on two cores took 60 times as long, and
    one alone less than twice as long (docs/LOG.md). Where the system does not tell, nothing is adapted.
    """

    def __init__(self) -> None:
        self.most = self.chosen = self.depth = 0
        self.own = self.set = 0  # torch's threads as the caller had them; as `begin` left them
        self.seen = _times()

    def begin(self, threads: int | None) -> None:
        """Threads that are given stay; else it is chosen, up to those that torch had before any were given and to the
        cores there are. In a command that another one carries out all stays as that has it."""
        import torch

        if self.depth and threads is None:
            return
        if torch.get_num_threads() != self.set:
            self.own = torch.get_num_threads()
        self.set = threads or min(self.own, usable_cores())
        if self.set != torch.get_num_threads():
            torch.set_num_threads(self.set)
        self.most = 0 if threads or not STATISTICS.exists() else torch.get_num_threads()
        self.chosen = self.most
        if time.perf_counter() - self.seen[0] > LONG_AGO:
            self.seen = _times()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Inside, torch has as many threads as there is room for; outside again as many as before."""
        import torch

        before = torch.get_num_threads()
        self.depth += 1
        self.adapt()
        try:
            yield
        finally:
            self.depth -= 1
            if not self.depth:
                torch.set_num_threads(before)

    def adapt(self) -> None:
        """Called inside `shared`, before every step; looks at what other programs do twice a second."""
        import torch

        if self.most < 2:
            return
        if time.perf_counter() - self.seen[0] >= LOOK_SECONDS:
            (before, used_before), self.seen = self.seen, _times()
            now, used = self.seen
            free = len(os.sched_getaffinity(0)) - (used - used_before) / (now - before)
            self.chosen = max(1, min(self.most, int(free + LITTLE_USE)))
        if self.chosen != torch.get_num_threads():
            torch.set_num_threads(self.chosen)


def _times() -> tuple[float, float]:
    """Now, and the seconds that others than this process have used of the processors that it may run on."""
    if not STATISTICS.exists():
        return 0.0, 0.0
    return time.perf_counter(), _busy_seconds(STATISTICS.read_text(), os.sched_getaffinity(0)) - time.process_time()


def _busy_seconds(statistics: str, cpus: set[int]) -> float:
    """Seconds of work of any kind that the system's ``statistics`` count for ``cpus``, since it started."""
    busy = 0
    for line in statistics.splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cpus:
            user, nice, system, _, _, irq, softirq, steal, *_ = map(int, ticks)
            busy += user + nice + system + irq + softirq + steal
    return busy / os.sysconf("SC_CLK_TCK")


CORES = SharedCores()


def limit_threads(threads: int | None = None) -> None:
    """So many threads for torch, or no more than there are cores, then adapted by `CORES`; and no more than there are
    cores for NumPy's BLAS.

    Both see no quota: in a container that may use 2 of 64 cores, 64 threads wait for each other at every operation.
    """
    from threadpoolctl import ThreadpoolController

    CORES.begin(threads)
    cores = usable_cores()
    for library in ThreadpoolController().select(user_api="blas").lib_controllers:
        if library.get_num_threads() > cores:
            library.set_num_threads(cores)


@contextmanager
def blas_shared() -> Iterator[None]:
    """Inside, BLAS has no more threads than torch has, which `CORES` adapts; that of SciPy's wheel, if there is one
    beside NumPy's, has one.

    What SciPy multiplies is small. Its threads spin on for a while where NumPy's want to work: on two cores a probe was
    fitted in two to seven times the time, and beside another program as slowly once more (docs/LOG.md).
    """
    import torch
    from threadpoolctl import ThreadpoolController

    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    with CORES.shared(), ExitStack() as stack:
        for library in libraries:
            place = Path(library.filepath).parts[-3:-1]
            most = 1 if any(part.startswith("scipy") for part in place) else torch.get_num_threads()
            if library.get_num_threads() > most:
                stack.callback(library.set_num_threads, library.get_num_threads())
                library.set_num_threads(most)
        yield


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees; returns whether the C library supports that (glibc only).

    glibc maps every block above 32 MiB anew and returns it when it is freed, so that each activation of a large batch
    costs a page fault for every 4 KiB: a third of a training step on a CPU (docs/LOG.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def pick_device(requested: str | None) -> DeviceName:
    """The requested device, or the fastest one here; a `UserError` if this machine has none such."""
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    available: dict[DeviceName, bool] = {"cuda": cuda, "mps": mps, "cpu": True}
    for name, found in available.items():
        if found and requested in (None, name):
            return name
    raise UserError(f"--device {requested}: PyTorch {torch.__version__} finds no such device here; use --device cpu")


def computes_in_bf16(device: str) -> bool:
    """Whether ``device`` has arithmetic in bfloat16, and need not imitate it, as GPUs before Ampere do."""
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    names = ("torch", "torchvision", "lightning-fabric", "timm", "numpy", "pillow")
    own = {"python": platform.python_version(), "mocokit": mocokit.__version__}
    return own | {name: version(name) for name in names}
