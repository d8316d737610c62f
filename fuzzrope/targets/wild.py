"""Libraries that others wrote, behind the adapters of :mod:`fuzzrope.wild`."""

from __future__ import annotations

from fuzzrope.targets.target import Target


def _wild(name: str, module: str, needs: str, summary: str, launches: bool = True, install: str = "") -> Target:
    """A library's function behind an adapter; what is outside its domain launches no kernel."""
    entry, install = f"fuzzrope.wild.{module}:ModelNew", install or f"'fuzzrope[{name}]'"
    return Target(f"wild:{name}", entry, kernel=False, summary=summary, needs=needs, install=install, launches=launches)


WILD: tuple[Target, ...] = (
    Target(
        "wild:compiled",
        "fuzzrope.wild.compiled:ModelNew",
        kernel=False,
        bare=True,
        summary="torch.compile of the eager Model; on a CPU it needs a C++ compiler and seconds a case",
    ),
    _wild("liger", "liger", "liger_kernel", "Liger-Kernel's LigerRopeFunction"),
    _wild("transformers", "transformers_llama", "transformers", "Hugging Face's apply_rotary_pos_emb, of Llama", False),
    _wild("fla", "fla", "fla", "flash-linear-attention's rotary_embedding"),
    _wild(
        "flaggems",
        "flaggems",
        "flag_gems",
        "FlagGems' apply_rotary_pos_emb",
        install="--no-deps flag_gems==5.0.2 && pip install sqlalchemy pyyaml",  # it demands a numpy that we cannot have
    ),
)
