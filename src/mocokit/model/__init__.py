"""The algorithm, free of framework and trainer. Read ``moco.py`` first."""
