"""What this machine's processor can."""

from __future__ import annotations

from functools import cache

import torch

_BF16 = ("amx_bf16", "avx512_bf16", "bf16")
"""Names in torch's table of capabilities: of x86 and of 64-bit ARM."""


@cache
def has_bf16() -> bool:
    """Whether the processor multiplies matrices of bfloat16, and not merely converts them."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _BF16)
