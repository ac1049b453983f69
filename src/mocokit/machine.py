"""This machine: cores, threads, memory, devices and installed versions. Imports torch only where it is needed."""

import ctypes
import platform
from importlib.metadata import version

import mocokit
from mocokit.config import DeviceName
from mocokit.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def usable_cores() -> int:
    """Cores by the process's affinity and, in a container, by its quota of processor time; at least 1."""
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


def limit_threads() -> None:
    """No more threads for torch and for NumPy's BLAS than there are cores.

    Both see no quota: in a container that may use 2 of 64 cores, 64 threads wait for each other at every operation.
    """
    import torch
    from threadpoolctl import ThreadpoolController

    cores = usable_cores()
    if torch.get_num_threads() > cores:
        torch.set_num_threads(cores)
    for library in ThreadpoolController().select(user_api="blas").lib_controllers:
        if library.get_num_threads() > cores:
            library.set_num_threads(cores)


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
    """Whether ``device`` has arithmetic in bfloat16."""
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return device == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    names = ("torch", "torchvision", "pytorch-lightning", "timm", "numpy", "pillow")
    own = {"python": platform.python_version(), "mocokit": mocokit.__version__}
    return own | {name: version(name) for name in names}
