"""What training makes small. Tensors are (N, C, …) logits and targets of 0 to 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dicomai.models.runtimes.networks import Classifier2d


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
    logits: Tensor, targets: Tensor, *, hardest: float = 1.0, positive_weight: float = 1.0
) -> Tensor:
    """Return soft Dice over the whole batch, and binary cross entropy of its worst voxels.

    Parameters
    ----------
    hardest
        Share of the voxels that count for the entropy. Of a rare target almost all are easy.
    positive_weight
        How much more a voxel of the target counts for the entropy.

    Notes
    -----
    Dice is taken over the batch, since most samples of a rare target hold none.
    """
    probabilities = torch.sigmoid(logits)
    overlap = (probabilities * targets).sum()
    dice = (2 * overlap + 1) / (probabilities.sum() + targets.sum() + 1)
    entropy = functional.binary_cross_entropy_with_logits(
        logits, targets, reduction="none", pos_weight=torch.tensor(positive_weight)
    )
    worst = entropy.flatten().topk(max(1, int(hardest * entropy.numel()))).values
    return 1 - dice + worst.mean()


class WithMap(nn.Module):
    """A classifier together with what it says of each place: for training only.

    The last layer is applied to the features of every cell, beside those that are pooled.

    Parameters
    ----------
    classifier
        Pools by "max", and gives one class; trained in place.
    """

    def __init__(self, classifier: Classifier2d) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, J, I) to logits (N, 1 + cells): of the whole image, then of each cell."""
        features = self.classifier.stages(x)
        whole = self.classifier.last(features.amax(dim=(2, 3)))
        cells = self.classifier.last(features.flatten(2).transpose(1, 2))
        return torch.cat((whole, cells[:, :, 0]), dim=1)


def cells(logits: Tensor, targets: Tensor) -> Tensor:
    """Return cross entropy of the cells, in which a nodule counts eight times.

    `logits` are those of `WithMap`, `targets` (N, 1, rows, columns) of 0 and 1.
    """
    weight = torch.tensor(8.0)
    return functional.binary_cross_entropy_with_logits(
        logits[:, 1:], targets.flatten(1), pos_weight=weight
    )


def whole_and_cells(logits: Tensor, targets: Tensor) -> Tensor:
    """Return cross entropy of the whole image, and that of `cells`."""
    whole = functional.binary_cross_entropy_with_logits(
        logits[:, 0], targets.flatten(1).amax(dim=1)
    )
    return whole + cells(logits, targets)
