"""The C library's heap: memory that a step frees is kept for the next one."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees; tells whether the C library could be told so.

    glibc maps every block above 32 MiB anew and gives it back when it is freed, so that each activation of a large
    batch costs a page fault for every 4 KiB: a third of a training step on a CPU (docs/LOG.md). Only glibc is told;
    elsewhere nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
