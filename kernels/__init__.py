"""RoPE kernels in Triton, and the modules that use them.

``ModelNew`` is the drop-in replacement of the eager ``reference.Model``; ``rope`` is its function. ``operators``
holds what ``torch.compile`` sees of it.
``import kernels.ModelNew`` and ``from kernels import ModelNew`` both give the class.
"""

from kernels import operators
from kernels.ModelNew import ModelNew
from kernels.rope import rope
from kernels.rope_attention import rope_attention
from kernels.rope_qk import rope_qk

__version__ = "0.1.0"

__all__ = ["ModelNew", "__version__", "operators", "rope", "rope_attention", "rope_qk"]
