"""Kernels without a flaw, which differ in how they round, tile and run: a judge has to let them pass."""

from __future__ import annotations

from fuzzrope.targets.target import Target


def _variant(
    name: str, entry: str, summary: str, operation: str = "rope", kernel: bool = True, gradients: bool = False
) -> Target:
    """A correct implementation that rounds or runs differently: it has to pass."""
    entry = f"fuzzrope.specimens.{entry}"
    return Target(
        f"variant:{name}", entry, operation, kernel=kernel, gradients=gradients, summary=f"no flaw: {summary}"
    )


CORRECT: tuple[Target, ...] = (
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
    _variant("by-product", "by_product:ByProduct", "each product rounded to the result's dtype"),
    _variant("contracted", "by_product:Contracted", "fused multiply-adds, terms reversed"),
    _variant("double-inside", "by_product:DoubleInside", "float64 inside"),
    _variant("other-tiles", "other_tiles:ModelNew", "tiles of 4 rows and 64 columns"),
    Target("variant:eager", "kernels.reference:Model", kernel=False, summary="no flaw: plain PyTorch"),
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
)
