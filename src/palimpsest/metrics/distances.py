"""Distances between two sets of features."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def frechet(features_a: Tensor, features_b: Tensor) -> float:
    """Fréchet distance of two sets of features, (n, d) each (Heusel et al. 2017, eq. 6).

    The distance is torchmetrics', on features of our own judge: it is no Inception FID and must
    not be compared with one.
    """
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Given(torch.nn.Identity):
        """The features are given: nothing is extracted."""

        num_features = features_a.shape[1]

    distance = FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
    distance.update(features_a.double(), real=True)
    distance.update(features_b.double(), real=False)
    return float(distance.compute())
