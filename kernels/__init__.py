"""RoPE kernels in Triton, and the modules that use them.

``ModelNew`` is the drop-in replacement of the eager ``reference.Model``; ``rope`` is its function, ``rope_qk`` and
``rope_attention`` are scores and attention with rotation inside. ``operators`` and ``fused_operators`` hold what
``torch.compile`` sees of them.
``import kernels.ModelNew`` and ``from kernels import ModelNew`` both give the class.
"""

from kernels import fused_operators, hopper, operators
from kernels.ModelNew import ModelNew
from kernels.rope import rope
from kernels.rope_attention import rope_attention
from kernels.rope_qk import rope_qk

__version__ = "0.1.0"

__all__ = ["ModelNew", "__version__", "fused_operators", "hopper", "operators", "rope", "rope_attention", "rope_qk"]
