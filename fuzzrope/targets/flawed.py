"""Specimens: kernels with one flaw each, which a judge has to find."""

from __future__ import annotations

from fuzzrope.targets.target import Target


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


FLAWED: tuple[Target, ...] = (
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
)
