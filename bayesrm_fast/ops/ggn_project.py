"""Per-segment gradients against directions that span several sites."""

import torch
from torch import Tensor

from bayesrm_fast.ops.backends import serve
from bayesrm_fast.ops.checks import FLOATING, require_device, require_increasing, require_segments, require_shape
from bayesrm_fast.ops.library import define


def ggn_project(
    p: Tensor,  # shape: (T, r)
    q: Tensor,  # shape: (T, d)
    offsets: Tensor,  # shape: (N + 1,), int64
    bases: Tensor,  # shape: (K, r, d)
) -> tuple[Tensor, Tensor]:  # shapes: (N, K), (N,)
    """One site's part of `B J` and `‖J‖²`: products `⟨G, b_k⟩` and `‖G‖²` of each segment's gradient `G = Σ p qᵀ`.

    A variance needs `‖J‖² − Σ_k c_k²`, with J and c summed over all sites, to 10⁻⁴ where it is 10⁻⁴ of `‖J‖²`
    (docs/maths.md, section 7). Both results must therefore be right to about 10⁻⁹ of `‖G‖`, and of one and the same G,
    whose own rounding then does no harm:

    - Sums in float32 fail, and those of 16 products that are then added up in float64 still do at times. So do exact
      ones that are rounded to float32 at the end: an error of 6·10⁻⁸ is more than 10⁻⁸ of `‖J‖²`. Hence float64
      results, by every backend.
    - Forming what is outside before it is squared, as `kron_project` does, needs c first, and c is summed over the
      sites: the bases would be read twice, where reading them is most of the cost, and all gradients be held.
    - Sums in float64 hold, for products of float32 numbers are exact in it. Where float64 is slow, so do float32 sums s
      beside a sum e of what was rounded away, which leave as `float64(s) + float64(e)`.

    Gradients less a baseline come as r tokens each, `G = Σ_i e_i G_iᵀ`, and need nothing more.

    Args:
        p, q, offsets: as in `segment_outer`.
        bases: b_k at this site, any floating dtype or int8; orthonormal over all sites together, not at one.

    Returns:
        The products and the squared norms, float64.

    Raises:
        ValueError: a shape, dtype or device does not fit, by the argument's name.
    """
    require_segments(p, q, offsets)
    require_shape("bases", bases, (None, p.shape[1], q.shape[1]), (*FLOATING, torch.int8))
    require_device(p, bases=bases)
    result: tuple[Tensor, Tensor] = _operator(p, q, offsets, bases)
    return result


def _ggn_project(p: Tensor, q: Tensor, offsets: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    require_increasing(offsets, p.shape[0])
    result: tuple[Tensor, Tensor] = serve("ggn_project", p, q, offsets, bases)
    return result


def _fake(p: Tensor, q: Tensor, offsets: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    products = q.new_empty(offsets.shape[0] - 1, bases.shape[0], dtype=torch.float64)
    return products, products.new_empty(products.shape[:1])


_operator = define(
    "ggn_project(Tensor p, Tensor q, Tensor offsets, Tensor bases) -> (Tensor, Tensor)", _ggn_project, _fake
)
