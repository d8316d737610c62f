"""The command ``fuzzrope``, also as ``python -m fuzzrope``.

Importing torch takes seconds, so interrupting is arranged before.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, NoReturn


def _interrupt(*args: Any) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line; an interruption at any time is exit code 2."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        from fuzzrope.cli import main as run

        run()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stderr.write("fuzzrope: interrupted\n")
        sys.stderr.flush()
        os._exit(2)


if __name__ == "__main__":
    main()
