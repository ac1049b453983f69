"""``python -m mocokit`` is ``mocokit``."""

from mocokit.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
