"""Kernels for compute capability 9.0, in Gluon; importing this adds them to :mod:`kernels.special`."""

from kernels.hopper import attention, qk, wide_qk
from kernels.special import SPECIAL, Special
from kernels.tiling import HOPPER

SPECIAL["attention"] = [Special(HOPPER, attention.serves, attention.pays, attention.prepare)]
SPECIAL["qk"] = [Special(HOPPER, module.serves, module.pays, module.prepare) for module in (qk, wide_qk)]
