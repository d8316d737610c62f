"""The program ``python -m fuzzrope.bench``, which ``fuzzrope bench`` becomes."""

from __future__ import annotations

import signal
from typing import Any, NoReturn


def _interrupt(*args: Any) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command; every way out has its exit code, as those of ``fuzzrope`` have."""
    signal.signal(signal.SIGTERM, _interrupt)
    from fuzzrope.bench.command import bench
    from fuzzrope.cli import main as run

    run(bench)


if __name__ == "__main__":
    main()
