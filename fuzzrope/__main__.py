"""``python -m fuzzrope`` is the command ``fuzzrope``."""

from fuzzrope.cli import main

if __name__ == "__main__":
    main()
