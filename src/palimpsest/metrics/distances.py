"""Distances between two sets of features."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

from palimpsest.metrics.clusters import FEWEST
from palimpsest.metrics.rates import Rate

if TYPE_CHECKING:
    from torch import Tensor

GROUPS = 20
"""Groups of prompts that the jackknife leaves out in turn, at most."""


def frechet(features_a: Tensor, features_b: Tensor) -> float:
    """Fréchet distance of two sets of features, (n, d) and (m, d), both of two or more.

    |μ_a − μ_b|² + tr(C_a + C_b − 2 (C_a C_b)^½)   (Heusel et al. 2017, eq. 6)

    With C = XᵀX of centred features X, tr (C_a C_b)^½ is the sum of the singular values of
    X_a X_bᵀ, for singular covariances too. On features of our own judge it is no Inception FID and
    must not be compared with one.
    """
    import torch

    means, roots, traces = [], [], 0.0
    for x in (features_a.double(), features_b.double()):
        centred = (x - x.mean(0)) / math.sqrt(len(x) - 1)
        traces += float(centred.square().sum())
        means.append(x.mean(0))
        roots.append(torch.linalg.qr(centred, mode="r")[1] if len(x) > x.shape[1] else centred)
    joint = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return float((means[0] - means[1]).square().sum()) + traces - 2 * float(joint)  # eq. 6


def kernel(features_a: Tensor, features_b: Tensor) -> float:
    """Return the squared maximum mean discrepancy of two sets of features, (n, d) each, n ≥ 2.

    KID (Bińkowski et al. 2018) is that with the kernel k(x, y) = (xᵀy/d + 1)³, on Inception's
    features. The estimate is the unbiased one of Gretton et al. 2012 (eq. 4): the mean over i ≠ j
    of k(a_i, a_j) + k(b_i, b_j) − k(a_i, b_j) − k(a_j, b_i). Row i of both sets is of one prompt
    and seed; such a pair is never compared with itself, so that the estimate stays unbiased though
    its two are alike, and identical sets give exactly 0. It may be negative.
    """
    a, b = features_a.double(), features_b.double()
    aa, bb, ab = ((x @ y.T / a.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    h = aa + bb - ab - ab.T  # eq. 4
    n = len(a)
    return float(h.sum() - h.diag().sum()) / (n * (n - 1))


def jackknifed(
    distance: Callable[[Tensor, Tensor], float],
    a: Tensor,
    b: Tensor,
    units: Sequence[Hashable] | None = None,
    least: float = -math.inf,
) -> Rate:
    """Return a distance of paired sets with its 95 % interval by the jackknife.

    All rows of a prompt are left out together, and prompts in 20 groups or by ones; Student's
    interval is of the scatter of what is then found (Tukey 1958). It says how far the distance
    would move if as many other pictures were drawn; what is biased at this n stays so. A bootstrap
    cannot serve: sets with pictures twice in them lie further apart, so that even at n = 10 d its
    interval for a Fréchet distance lies wholly above the distance itself.

    Args:
        distance: of two sets.
        a: (n, d) features.
        b: (n, d) features of the counterparts, in the same order.
        units: what rows that are left out together share (`clusters.units`); None if nothing.
        least: what the distance cannot be below.

    Returns:
        The distance, its interval (NaN with fewer than three units) and n.
    """
    import torch
    from scipy.stats import t

    n, value = len(a), distance(a, b)
    place = {unit: i for i, unit in enumerate(dict.fromkeys(units or range(n)))}
    of = torch.tensor([place[unit] for unit in units or range(n)])
    if len(place) < FEWEST:
        return Rate(value, math.nan, math.nan, n)
    without = []
    for group in torch.arange(len(place)).tensor_split(min(len(place), GROUPS)):
        kept = ~torch.isin(of, group)
        without.append(distance(a[kept], b[kept]))
    g, found = len(without), torch.tensor(without, dtype=torch.float64)
    half = float(t.ppf(0.975, g - 1)) * float(((g - 1) ** 2 / g * found.var()).sqrt())
    return Rate(value, max(least, value - half), value + half, n)
