"""Tiles by kernel, device and problem, as ``fuzzrope bench --tune`` measured them. Made by it: do not edit.

(kernel, 10 * compute capability, bytes of an element, columns of a head):
    (length, (rows, keys, warps, stages, steps)), ... in the order of lengths.

What has no entry follows the rule of its kernel.
"""

# fmt: off
TABLE: dict[tuple[str, int, int, int], tuple[tuple[int, tuple[int, int, int, int, int]], ...]] = {
    ("attention", 90, 2, 128): (
        (4, (16, 64, 4, 2, 0)),
        (128, (128, 64, 8, 3, 0)),
    ),
    ("qk", 90, 2, 128): (
        (256, (64, 128, 4, 2, 0)),
    ),
}
