"""fuzzrope judges GPU kernels: it draws hostile cases, runs them in a disposable child, and derives the verdict."""

__version__ = "0.1.0"
