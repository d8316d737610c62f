"""What the planted faults have in common: a correct RoPE around a kernel that takes a tile of rows.

Kernels are called with ``x`` of any strides, tables expanded to (S, W) and a contiguous output.
"""

import torch
import triton

ROWS = 2


class Rope:
    """The contract of ``rope`` for full-size tables and those of one row or column."""

    def launch(self, *arguments):
        """Rotate one tensor: x, cos, sin, out, rows, heads, seq, half, four strides of x, two of each table."""
        raise NotImplementedError

    def new_output(self, x, seq, dtype):
        """Where the rotation of x goes."""
        return torch.empty((*x.shape[:2], seq, x.shape[3]), dtype=dtype, device=x.device)

    def rotate(self, x, cos, sin):
        """Rotated x (B, H, S, D) in fresh memory."""
        half = x.shape[3] // 2
        seq, _ = torch.broadcast_shapes((x.shape[2], half), cos.shape, sin.shape)
        cos, sin = cos.expand(seq, half), sin.expand(seq, half)
        out = self.new_output(x, seq, torch.promote_types(torch.promote_types(x.dtype, cos.dtype), sin.dtype))
        x = x.expand(*x.shape[:2], seq, x.shape[3])
        rows = x.shape[0] * x.shape[1] * seq
        if rows and half:
            self.launch(
                *(x, cos, sin, out, rows, x.shape[1], seq, half),
                *(*x.stride(), *cos.stride(), *sin.stride()),
                triton.next_power_of_2(half),
            )
        return out

    def __call__(self, q, k, cos, sin):
        cos, sin = cos[: q.shape[2]], sin[: q.shape[2]]
        return self.rotate(q, cos, sin), self.rotate(k, cos, sin), cos, sin
