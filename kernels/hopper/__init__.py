"""Kernels for compute capability 9.0, in Gluon; importing this adds them to :mod:`kernels.special`."""

from kernels.hopper import attention, attention_backward, qk, qk_backward, streamed_qk, wide_qk
from kernels.special import SPECIAL, Special
from kernels.tiling import HOPPER

SPECIAL["attention"] = [Special(HOPPER, attention.serves, attention.pays, attention.prepare)]
SPECIAL["attention_gradients"] = [
    Special(HOPPER, attention_backward.serves, attention_backward.pays, attention_backward.prepare)
]
SPECIAL["qk"] = [Special(HOPPER, module.serves, module.pays, module.prepare) for module in (streamed_qk, qk, wide_qk)]
SPECIAL["qk_gradients"] = [Special(HOPPER, qk_backward.serves, qk_backward.pays, qk_backward.prepare)]
