"""The processor cores that this process may keep busy, and as many threads."""


def usable_cores() -> int:
    """Cores by the process's affinity and, in a container, by its quota of processor time; at least 1."""
    from joblib import cpu_count  # takes a sixth of a second, and decoding processes never ask

    return int(cpu_count())


def limit_threads() -> None:
    """No more threads for torch than there are cores.

    torch sees affinity but no quota: in a container that may use 2 of 64 cores it starts 64 threads, which wait for
    each other at every operation.
    """
    import torch

    if torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())
