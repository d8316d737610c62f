"""Liger's RoPE, as it is installed, forward and backward on the CPU engine."""

import pytest
import torch

EPS = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def tables(batch, seq, width, dtype):
    angle = torch.rand(batch, seq, width // 2, dtype=torch.float64) * 6
    return tuple(torch.cat([half, half], -1).to(dtype) for half in (angle.cos(), angle.sin()))


def rotated(x, cos, sin):
    """In float64, with the size of the terms that were added."""
    x, cos, sin = (t.double() for t in (x, cos[:, None], sin[:, None]))
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos + turned * sin, (x * cos).abs() + (turned * sin).abs()


def assert_rotated(result, x, cos, sin):
    """Two products and a sum in the format: (1 + u)**2 - 1 of the terms' size, and what underflows."""
    right, size = rotated(x, cos, sin)
    unit = EPS[result.dtype]
    tiny = torch.finfo(result.dtype).smallest_normal
    assert ((result.double() - right).abs() <= (2 * unit + unit * unit) * size + 3 * unit * tiny).all()


@pytest.fixture
def rope(engine):
    from liger_kernel.ops.rope import LigerRopeFunction

    return LigerRopeFunction.apply


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "seq", "width", "table_batch"),
    [(2, 4, 2, 5, 8, 1), (1, 3, 1, 7, 16, 1), (3, 2, 2, 4, 6, 3), (1, 1, 1, 1, 2, 1)],
)
def test_forward_and_backward(engine, rope, dtype, batch, heads, kv_heads, seq, width, table_batch):
    torch.manual_seed(seq)
    q, k, dq, dk = (torch.randn(batch, n, seq, width).to(dtype) for n in (heads, kv_heads, heads, kv_heads))
    cos, sin = tables(table_batch, seq, width, dtype)
    ins = [x.clone().requires_grad_() for x in (q, k)]
    outs = rope(*ins, cos, sin)
    for out, x in zip(outs, (q, k), strict=True):
        assert_rotated(out.detach(), x, cos, sin)
    for grad, d in zip(torch.autograd.grad(outs, ins, [dq.clone(), dk.clone()]), (dq, dk), strict=True):
        assert_rotated(grad, d, cos, -sin)
    assert [launch["kernel"] for launch in engine.launches] == ["_triton_rope"] * 2
    assert engine.accesses == {}
