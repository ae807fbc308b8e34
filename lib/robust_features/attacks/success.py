"""What users of an attack ask next: which images it fooled, and what it does within another epsilon."""

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from robust_features import inputs

A = TypeVar("A")


def fooled(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """(N,) bool: the (N, C, H, W) images, in [0, 1], that the model classifies as anything but their labels, (N,).

    Raises ValueError for what `inputs` refuses, such as a model that gives NaN.

    >>> fooled(nn.Flatten(), torch.tensor([[[[0.6, 0.5]]], [[[0.4, 0.5]]]]), torch.tensor([0, 0]))
    tensor([False,  True])
    """
    with torch.no_grad():
        images = inputs.pixels(model, images)
        labels = inputs.classes(labels, images)
        logits = model(images)
        inputs.logits(logits, labels)
    return logits.argmax(1) != labels


def scaled(attack: A, epsilon: float) -> A:
    """The attack within another epsilon, with steps in proportion. Raises ValueError for an attack without epsilon.

    >>> from robust_features.attacks import PGD
    >>> [scaled(PGD(epsilon=0.5, step_size=0.25), epsilon).step_size for epsilon in (0.25, 1.0)]
    [0.125, 0.5]
    """
    if hasattr(attack, "pgd"):
        return replace(attack, pgd=scaled(attack.pgd, epsilon))
    if not getattr(attack, "epsilon", None):
        raise ValueError(f"{type(attack).__name__} has no epsilon here that another one could be compared with")
    changed: dict[str, Any] = {"epsilon": epsilon}
    if hasattr(attack, "step_size"):
        changed["step_size"] = attack.step_size * epsilon / attack.epsilon
    return replace(attack, **changed)
