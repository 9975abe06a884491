"""The loop that trains a network: batches in, weights changed, losses out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dicomai.errors import InputError
from dicomai.training.samples import Sample

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast.

    The learning rate rises over the first twentieth of the steps and falls to nothing as a cosine.
    `bfloat16` takes a third of the time on a processor with such arithmetic, and drops faint
    contrasts; the weights stay float32.
    """

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float = 1e-4
    bfloat16: bool = False


def train(
    network: nn.Module,
    samples: Iterator[Sample],
    loss: Loss,
    schedule: Schedule,
    on_step: Callable[[int, float], None],
) -> list[float]:
    """Train a network in place, on the device where it lies, and return the loss of each step.

    Parameters
    ----------
    samples
        Without end, all of one shape. They bring their own seed; that of the weights is set where
        the network is built.
    on_step
        Called after each step with its number and loss.

    Raises
    ------
    InputError
        A loss or its gradient is no number: each step after it would make every weight so too.
    """
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
    )
    warm = max(1, schedule.steps // 20)

    def rate(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, schedule.steps - warm)))

    losses = []
    device = next(network.parameters()).device
    network.train()
    for step in range(schedule.steps):
        for group in optimiser.param_groups:
            group["lr"] = schedule.learning_rate * rate(step)
        batch = list(itertools.islice(samples, schedule.batch))
        inputs = torch.from_numpy(np.stack([each.inputs for each in batch])).to(device)
        targets = torch.from_numpy(np.stack([each.targets for each in batch])).to(device)
        optimiser.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=schedule.bfloat16):
            logits = network(inputs)
        value = loss(logits.float(), targets)
        value.backward()  # type: ignore[no-untyped-call]  # torch declares no types here
        length = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        if not (torch.isfinite(value) and torch.isfinite(length)):
            raise InputError(
                f"Training, step {step + 1} of {schedule.steps}: the loss is "
                f"{float(value.detach()):g} and its gradient {float(length):g}, so nothing more "
                "can be learned. Look for NaN in the samples, or take a lower learning rate."
            )
        optimiser.step()
        losses.append(float(value.detach()))
        on_step(step, losses[-1])
    network.eval()
    return losses
