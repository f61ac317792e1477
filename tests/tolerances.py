"""The error budgets, each from the arithmetic and not from what passed."""

import torch

RELATIVE = {
    # About 1e5 times the unit roundoff of 1.1e-16: solves of condition numbers up to 1e4, and sums.
    torch.float64: 1e-8,
    # Unit roundoff of 6e-8; a forward and a backward pass of a few hundred roundings, squared in a variance.
    torch.float32: 1e-4,
}

# A float64 model of transformers still rounds to float32 inside (RMSNorm, the softmax of eager attention): two batches
# that differ by one float64 rounding may differ there by one float32 rounding, 6e-8, before a backward pass and a
# square.
FLOAT32_INSIDE = 1e-5
