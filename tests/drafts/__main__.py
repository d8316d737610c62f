"""``fuzzrope bench`` with a draft in the place of what is shipped.

python -m tests.drafts NAME[:CONSTANT=NUMBER...] [arguments of the command]
"""

import importlib
import sys

from tests.drafts import DRAFTS


def take(text: str) -> None:
    """Take the draft that a text names, its constants with other values if it says so; raises ValueError."""
    name, *settings = text.split(":")
    if name not in DRAFTS:
        raise ValueError(f"the first argument is one of {', '.join(DRAFTS)}, not {name!r}")
    module = importlib.import_module(f"tests.drafts.{name}")
    for setting in settings:
        constant, _, number = setting.partition("=")
        if not hasattr(module, constant) or not number.isdecimal():
            raise ValueError(f"{setting!r} is not CONSTANT=NUMBER with a constant of {module.__file__}")
        setattr(module, constant, int(number))
    module.take()


def main() -> None:
    """Take the draft, and let the command do the rest."""
    try:
        take(sys.argv.pop(1) if len(sys.argv) > 1 else "")
    except ValueError as error:
        sys.exit(f"python -m tests.drafts: {error}")
    from fuzzrope.bench.__main__ import main as bench

    bench()


if __name__ == "__main__":
    main()
