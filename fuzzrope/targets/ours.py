"""The kernels of this project, and the eager module that they stand for."""

from __future__ import annotations

from fuzzrope.targets.target import Target

OURS: tuple[Target, ...] = (
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
)
