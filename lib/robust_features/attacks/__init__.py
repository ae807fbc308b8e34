"""The attacks: values that are called as (model, images, labels, *, generator=None) → images.

A new attack needs its class, and a place in `Attack`.

A call checks what it is given (`inputs.attack`) and hands it to the attack's `perturb`, which training, and attacks
made of attacks, call directly.

Conventions: images in [0, 1]; true labels; eval mode and frozen parameters are set by `networks.frozen`; the last
iterate is returned unless the attack says which it keeps. *Budget* attacks stay within epsilon, *Minimal* ones do not.
`generator` may also be the images' keys (`noise.image_keys`); without one the draws are those of the seed 0.
"""

from typing import Annotated

from pydantic import Field

from robust_features.attacks.adaptive import Adaptive
from robust_features.attacks.apgd import APGD
from robust_features.attacks.ball import Ball, l2, linf
from robust_features.attacks.ensemble import AutoAttack
from robust_features.attacks.fab import FAB
from robust_features.attacks.gradient import NIFGSM, PGD, ascend, margin
from robust_features.attacks.square import Square
from robust_features.attacks.success import fooled, scaled
from robust_features.attacks.tanh import CarliniWagner, FeatureGradient, search

Attack = Annotated[
    PGD | NIFGSM | APGD | FAB | Square | AutoAttack | CarliniWagner | FeatureGradient | Adaptive,
    Field(discriminator="kind"),
]

__all__ = [
    "APGD",
    "FAB",
    "Adaptive",
    "NIFGSM",
    "PGD",
    "Attack",
    "AutoAttack",
    "Ball",
    "CarliniWagner",
    "FeatureGradient",
    "Square",
    "ascend",
    "fooled",
    "l2",
    "linf",
    "margin",
    "scaled",
    "search",
]
