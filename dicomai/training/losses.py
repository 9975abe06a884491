"""What training makes small. Tensors are (N, C, …) logits and targets of 0 to 1."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def dice_loss(probabilities: Tensor, targets: Tensor, smooth: float = 1.0) -> Tensor:
    """Return 1 less the mean soft Dice over samples and channels.

    A channel that is empty in a sample still counts: what is predicted there lowers its Dice
    through `smooth`, in voxels.
    """
    axes = tuple(range(2, probabilities.dim()))
    overlap = (probabilities * targets).sum(dim=axes)
    total = probabilities.sum(dim=axes) + targets.sum(dim=axes)
    return 1 - ((2 * overlap + smooth) / (total + smooth)).mean()


def dice_and_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return soft Dice over the classes but the first, and cross entropy over all.

    `targets` is one-hot (or soft) over channels, and the first channel is the background.
    """
    probabilities = torch.softmax(logits, dim=1)
    entropy = -(targets * functional.log_softmax(logits, dim=1)).sum(dim=1).mean()
    return dice_loss(probabilities[:, 1:], targets[:, 1:]) + entropy


def dice_and_binary_cross_entropy(
    logits: Tensor, targets: Tensor, positive_weight: float = 1.0
) -> Tensor:
    """Return soft Dice over the whole batch, and binary cross entropy with rare voxels weighted.

    Dice is taken over the batch, since most samples of a rare target hold none.
    """
    probabilities = torch.sigmoid(logits)
    overlap = (probabilities * targets).sum()
    dice = (2 * overlap + 1) / (probabilities.sum() + targets.sum() + 1)
    weight = torch.tensor(positive_weight, device=logits.device)
    entropy = functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight)
    return 1 - dice + entropy
