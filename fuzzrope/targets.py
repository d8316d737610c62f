"""Names of implementations that can be judged, and what each promises. Nothing here imports a target.

Adding one is adding one entry to ``REGISTERED``; a file is a target without being registered.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, replace
from pathlib import Path

from fuzzrope.text import one_line

LEVELS = ("values", "strict")


class TargetError(ValueError):
    """A name that is no target; the message says what would be."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


@dataclass(frozen=True, slots=True)
class Target:
    """One implementation of an operation.

    Attributes:
        name: what the user types.
        entry: ``module:attribute`` or the path of a file that defines ``ModelNew``.
        operation: the contract it is judged by.
        level: ``values`` (values, shapes, dtypes, memory) or ``strict`` (strides, aliasing, errors too).
        exact: it promises bit-for-bit equality with eager PyTorch.
        kernel: it promises to launch a Triton kernel; if not, ``no_launch`` is not judged.
        gradients: it promises gradients; at the strict level they are judged in any case.
        repeatable: it promises the same bits each time, whatever order its programs run in.
        summary: one line for ``fuzzrope list``.
        needs: the package that it imports besides torch and Triton, if it is somebody else's.
        launches: it runs Triton kernels, promised or not.
        tiled: the function of ``kernels.pinned`` that runs it with tiles of one's choice, if there is one.
        extra: the optional dependency of fuzzrope that installs it.
    """

    name: str
    entry: str
    operation: str = "rope"
    level: str = "values"
    exact: bool = False
    kernel: bool = True
    gradients: bool = False
    repeatable: bool = True
    summary: str = ""
    needs: str = ""
    extra: str = ""
    launches: bool = False
    tiled: str = ""

    @property
    def missing(self) -> str:
        """One line that says what to install before this target can be judged, or nothing. Imports nothing."""
        if not self.needs or importlib.util.find_spec(self.needs):
            return ""
        return f"{self.name}: {self.needs} is not installed; pip install 'fuzzrope[{self.extra}]'"

    @property
    def is_file(self) -> bool:
        """Whether the entry is the path of a file."""
        return self.entry.endswith(".py")

    @property
    def folder(self) -> str:
        """Name of the target's folder in the corpus."""
        name = Path(self.name).stem if self.is_file else self.name
        return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "target"

    def at(self, level: str | None) -> Target:
        """The same target judged at another level; ``exact`` is part of the strict level."""
        if level is None or level == self.level:
            return self
        return replace(self, level=level, exact=self.exact and level == "strict")


def _specimen(name: str, summary: str, operation: str = "rope", gradients: bool = False, kernel: bool = True) -> Target:
    entry = f"fuzzrope.specimens.{name.replace('-', '_')}:ModelNew"
    return Target(f"specimen:{name}", entry, operation, kernel=kernel, gradients=gradients, summary=summary)


def _placed(name: str, summary: str, module: str = "placed") -> Target:
    """A function of a module with a flaw, of the operation ``rope_`` and the module's name."""
    entry = f"fuzzrope.specimens.{module}:{name.replace('-', '_')}"
    return Target(f"specimen:{module}-{name}", entry, f"rope_{module}", summary=summary)


def _placed_gradient(name: str, flawed: str, summary: str, kind: str = "placed") -> Target:
    entry = f"fuzzrope.specimens.placed_gradients:{flawed}"
    return Target(f"specimen:{kind}-gradient-{name}", entry, f"rope_{kind}", gradients=True, summary=summary)


def _variant(
    name: str, entry: str, summary: str, operation: str = "rope", kernel: bool = True, gradients: bool = False
) -> Target:
    """A correct implementation that rounds or runs differently: it has to pass."""
    entry = f"fuzzrope.specimens.{entry}"
    return Target(
        f"variant:{name}", entry, operation, kernel=kernel, gradients=gradients, summary=f"no flaw: {summary}"
    )


def _wild(name: str, module: str, needs: str, summary: str, launches: bool = True) -> Target:
    """A library's function behind an adapter; what is outside its domain launches no kernel."""
    entry = f"fuzzrope.wild.{module}:ModelNew"
    return Target(f"wild:{name}", entry, kernel=False, summary=summary, needs=needs, extra=name, launches=launches)


REGISTERED: tuple[Target, ...] = (
    Target(
        "kernels.ModelNew",
        "kernels.ModelNew:ModelNew",
        level="strict",
        exact=True,
        gradients=True,
        tiled="rope",
        summary="our RoPE, the drop-in for the eager Model",
    ),
    Target(
        "kernels.rope",
        "kernels:rope",
        operation="rope_options",
        level="strict",
        exact=True,
        gradients=True,
        tiled="rope",
        summary="its function, with interleaved and rotary_dim",
    ),
    Target(
        "kernels.rope_placed",
        "fuzzrope.specimens.placed:ours",
        operation="rope_placed",
        level="strict",
        exact=True,
        gradients=True,
        summary="its function, with positions",
    ),
    Target(
        "kernels.rope_batched",
        "kernels:rope",
        operation="rope_batched",
        level="strict",
        exact=True,
        gradients=True,
        summary="its function, with tables of each batch",
    ),
    Target(
        "kernels.reference",
        "kernels.reference:Model",
        kernel=False,
        gradients=True,
        summary="the eager PyTorch Model, judged like any other target",
    ),
    Target(
        "kernels.rope_qk",
        "kernels:rope_qk",
        "rope_qk",
        level="strict",
        tiled="rope_qk",
        summary="our scores of rotated queries and keys, in one launch",
    ),
    Target(
        "kernels.rope_attention",
        "kernels:rope_attention",
        "rope_attention",
        level="strict",
        tiled="rope_attention",
        summary="our attention with rotation inside, split over keys where rows are few",
    ),
    _specimen("unfused-baseline", "one program a row; allocates with empty_like and trusts the input's strides"),
    _specimen("k-geometry", "addresses k with q's strides and heads"),
    _specimen("ragged-tail", "no column mask: a ragged tile writes over its neighbour"),
    _specimen("table-overread", "reads tables past their end where the value is masked away"),
    _specimen("narrow-dtype", "computes in the storage dtype of x and returns it"),
    _specimen("nan-swallower", "replaces NaN by zero on load"),
    _specimen("in-place", "writes the rotation over its inputs"),
    _specimen("size-one-stride", "uses the degenerate stride of a sequence of one"),
    _specimen("boundary-row", "<= for < at the last row"),
    _specimen("falls-back", "returns to PyTorch when strides are inconvenient"),
    _specimen("table-scribbler", "changes cos after using it"),
    _specimen("extra-heads", "leaves heads of k beyond q's unrotated"),
    _specimen("narrow-index", "multiplies batch and stride in 32 bits"),
    _placed("first-batch", "every batch has the positions of the first"),
    _placed("clamped", "a position beyond a table takes its last row"),
    _placed("dense", "positions are read as if they were contiguous"),
    _placed("below", "a position below 0 takes row 0"),
    _placed("first-batch", "every batch is turned by the tables of the first", "batched"),
    _placed("cut", "tables longer than q are read as if they were not", "batched"),
    _placed("by-cos", "where all batches share cos, they share the first sin", "batched"),
    _placed_gradient("overwrites", "Overwrites", "of the uses of a row of a table one alone counts"),
    _placed_gradient("in-order", "InOrder", "the gradient of a table lands in the rows of the sequence"),
    _placed_gradient("nearest", "Nearest", "a position that a table lacks adds to the gradient of the nearest row"),
    _placed_gradient("summed", "Summed", "the tables of each batch get the gradient of all batches", "batched"),
    _specimen("gradient-sign", "the gradient's rotation turns on instead of back", gradients=True),
    _specimen("gradient-first-batch", "sums the gradients of the tables over the first batch alone", gradients=True),
    _specimen("gradient-query-only", "leaves k out of the gradients of the tables", gradients=True),
    _specimen("gradient-strides", "reads the output's gradient as if it were contiguous", gradients=True),
    _specimen("gradient-detached", "cuts the graph: its outputs have no gradient", gradients=True),
    _specimen("gradient-unused", "its backward fails where an output is not used", gradients=True),
    _specimen("gradient-all-or-none", "its gradients are right only if all inputs require one", gradients=True),
    _specimen("drift", "four representable numbers too large"),
    _specimen("truncates", "truncates where it should round to nearest"),
    _specimen("narrow-double", "float64 computed in float32"),
    _specimen("half-inside", "computes in float16"),
    _specimen("flushes", "subnormal results become zero"),
    _specimen("clamps", "infinite results become the largest number"),
    _specimen("rare", "one element in ten thousand is wrong"),
    _specimen("length-path", "rounds by the parity of the sequence's length"),
    _specimen("chance", "rounds one way or another by chance"),
    _specimen("fifth-call", "right for the first five calls only"),
    _specimen("by-address", "results memoized by data_ptr"),
    _specimen("next-row", "takes NaN over from the row before"),
    _variant("by-product", "by_product:ByProduct", "each product rounded to the result's dtype"),
    _variant("contracted", "by_product:Contracted", "fused multiply-adds, terms reversed"),
    _variant("double-inside", "by_product:DoubleInside", "float64 inside"),
    _variant("other-tiles", "other_tiles:ModelNew", "tiles of 4 rows and 64 columns"),
    Target("variant:eager", "kernels.reference:Model", kernel=False, summary="no flaw: plain PyTorch"),
    *(
        _specimen(f"qk-{name}", summary, "rope_qk")
        for name, summary in (
            ("low-accumulator", "sums scores in the type of q"),
            ("tf32", "multiplies in tf32 where the highest precision was asked for"),
            ("late-scale", "scales scores after rounding them to the type of q"),
            ("no-offset", "ignores q_offset"),
        )
    ),
    *(
        _specimen(f"attention-{name}", summary, "rope_attention")
        for name, summary in (
            ("low-accumulator", "sums weighted values in the type of v"),
            ("tf32", "multiplies in tf32 where the highest precision was asked for"),
            ("late-scale", "scales scores after rounding them to the type of q"),
            ("no-offset", "ignores q_offset"),
            ("rough-exp", "approximates exp to a relative 1e-4"),
            ("no-rescale", "does not rescale what it has when the largest score grows"),
            ("tail-counts", "counts keys beyond the last with a score of 0"),
            ("empty-rows", "answers NaN where a row sees no key"),
        )
    ),
    *(
        _specimen(name, summary, operation, gradients=True, kernel=False)
        for name, summary, operation in (
            ("qk-group-first-head", "the gradient of k comes from the first head of its group", "rope_qk"),
            ("attention-no-delta", "leaves do · o out of the gradient of softmax", "rope_attention"),
            ("attention-softcap-forgotten", "does not differentiate softcap", "rope_attention"),
        )
    ),
    Target(
        "specimen:tiled",
        "fuzzrope.specimens.tiled:ModelNew",
        summary="no flaw: the correct kernel that the specimens depart from",
    ),
    Target(
        "specimen:differentiable",
        "fuzzrope.specimens.differentiable:ModelNew",
        gradients=True,
        summary="no flaw: a correct kernel with gradients",
    ),
    *(
        _variant(f"qk-{name}", f"qk_tiled:{entry}", what, "rope_qk", name != "twin")
        for name, entry, what in (
            ("tiled", "TiledQK", "tiles of rotated q and k"),
            ("folded", "Folded", "scale multiplied into q first"),
            ("double", "Double", "float64 inside"),
            ("twin", "Twin", "plain PyTorch"),
        )
    ),
    *(
        _variant(f"attention-{name}", f"attention_tiled:{entry}", what, "rope_attention", name != "twin")
        for name, entry, what in (
            ("tiled", "TiledAttention", "online softmax, rotation inside"),
            ("base-two", "BaseTwo", "exp2 of scores times log2(e)"),
            ("backwards", "Backwards", "the last keys first"),
            ("folded", "Folded", "scale multiplied into q first"),
            ("double", "Double", "float64 inside"),
            ("twin", "Twin", "plain PyTorch"),
        )
    ),
    *(
        _variant(f"{prefix}-{name}", f"{entry}", what, operation, kernel=False, gradients=True)
        for prefix, operation, kind in (("qk", "rope_qk", "QK"), ("attention", "rope_attention", "Attention"))
        for name, entry, what in (
            ("eager-grad", f"{prefix}_tiled:Twin", "plain PyTorch, differentiated by autograd"),
            ("flash-grad", f"fused_differentiable:Differentiable{kind}", "a backward pass in 16-bit products"),
            ("other-grad", f"fused_differentiable:Other{kind}", "a backward pass that rounds elsewhere"),
        )
    ),
    *(
        _variant(f"{kind}-{name}", entry, what, f"rope_{kind}", kernel=name != "eager", gradients=True)
        for kind in ("placed", "batched")
        for name, entry, what in (
            ("tiled", "placed_differentiable:ModelNew", "batch by batch, the last use of a row summed first"),
            ("eager", "placed:eager", "plain PyTorch, differentiated by autograd"),
        )
    ),
    _wild("liger", "liger", "liger_kernel", "Liger-Kernel's LigerRopeFunction"),
    _wild("transformers", "transformers_llama", "transformers", "Hugging Face's apply_rotary_pos_emb, of Llama", False),
    _wild("fla", "fla", "fla", "flash-linear-attention's rotary_embedding"),
)


def names() -> list[str]:
    """Every registered name."""
    return [target.name for target in REGISTERED]


def find_all(name: str) -> list[Target]:
    """The target of a name or path; of a folder, its files that define ``ModelNew``, in order.

    Nothing is imported. Raises :class:`TargetError` with one clear line.
    """
    if not Path(name).is_dir():
        return [find(name)]
    found = [find(str(path)) for path in sorted(Path(name).glob("*.py")) if _DEFINES.search(_text(path))]
    if not found:
        raise TargetError(f"{name}: no file in this folder defines ModelNew")
    return found


_DEFINES = re.compile(r"^(class ModelNew\b|ModelNew\s*[:=])", re.MULTILINE)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


#: What may follow a target's name and "@": other tiles for each case, or certain ones.
_TILES = re.compile(r"any|[a-z_]+=\d+(x\d+){3,4}(,[a-z_]+=\d+(x\d+){3,4})*")


def _with_tiles(target: Target, which: str) -> Target:
    """The target with tiles of one's choice; see ``kernels.pinned``."""
    if not target.tiled:
        raise TargetError(f"{target.name}@{which}: the tiles of {target.name} cannot be chosen")
    if not _TILES.fullmatch(which):
        raise TargetError(f"{target.name}@{which}: expected any, or KERNEL=ROWSxKEYSxWARPSxSTAGES[xSTEPS],... after @")
    return replace(target, name=f"{target.name}@{which}", entry=f"kernels.pinned:{target.tiled}@{which}")


def find(name: str) -> Target:
    """The target of this name or path; raises :class:`TargetError` with one clear line.

    ``NAME@any`` and ``NAME@KERNEL=64x128x8x2`` are our kernels with other tiles than the shipped choice.
    """
    base, at, which = name.partition("@")
    for target in REGISTERED:
        if target.name == base:
            return _with_tiles(target, which) if at else target
    if name.endswith(".py") or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise TargetError(f"{name}: no such file")
        return Target(name, str(path))
    raise TargetError(f"{name}: not a target; name a file.py, or one of {', '.join(names())}")
