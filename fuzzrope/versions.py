"""What a figure or a finding depends on."""

from __future__ import annotations

import platform

import hypothesis
import torch
import triton

import fuzzrope


def versions() -> dict[str, str]:
    """Versions by package name, Python's included."""
    return {
        "fuzzrope": fuzzrope.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "hypothesis": hypothesis.__version__,
    }
