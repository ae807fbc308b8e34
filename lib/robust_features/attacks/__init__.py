"""The attacks: values that are called as (model, images, labels, *, generator) → images.

A new one: its class, and its place in `Attack`.

Conventions: images in [0, 1]; true labels; eval mode and frozen parameters are `models.frozen`'s business; the last iterate
is returned unless the attack keeps the nearest. *Budget* attacks stay within epsilon, *Minimal* ones do not.
"""

from typing import Annotated

from pydantic import Field

from robust_features.attacks.ball import Ball, l2, linf
from robust_features.attacks.gradient import PGD, ascend
from robust_features.attacks.tanh import CarliniWagner, margin, search

Attack = Annotated[PGD | CarliniWagner, Field(discriminator="kind")]

__all__ = ["PGD", "Attack", "Ball", "CarliniWagner", "ascend", "l2", "linf", "margin", "search"]
