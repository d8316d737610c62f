"""The CPU engine: executes Triton IR (TTIR), the very IR a GPU's code is made from, and checks every access.

The way of a launch: Triton binds and specializes it as ever; :mod:`.frontend` has Triton's own front end and
first passes make the IR for compute capability 9.0; :mod:`.ir` reads it; :mod:`.translate` and the modules
that register with it turn it into one NumPy program, once a variant; :mod:`.machine` runs that for all
programs of the grid in lockstep, a chunk at a time, and checks each load and store against the exact view
its pointer was derived from.

Where results must differ from hardware's, and by how much:

- sums in ``tl.dot``, reductions and scans are rounded in another order;
- ``exp``, ``sin`` and their like, ``/`` and ``tl.sqrt`` on float32 are correctly rounded here, or nearly;
  hardware approximates them within the ulps of the PTX manual, and flushes subnormals in some;
- a product and a sum are rounded one after the other; on a GPU they may be contracted to one ``fma`` unless
  ``enable_fp_fusion=False``, as they are here if asked (``contracts``) where both are in one block and have one shape;
- the bits of a NaN, which hardware replaces;
- the order of atomic operations, which is that of the programs here.

All else was the same bit for bit on an H200 (``python -m tests.agreement``; ``reports/baseline``), including
what one would not expect: ``floor`` and ``ceil`` flush float32 subnormals, conversions to 8-bit floats
saturate, tf32 products cut their factors.

Programs run in order, one at a time, in kernels that use what an atomic operation returns. A kernel in which
a program waits for one with a higher number never ends here.
"""
