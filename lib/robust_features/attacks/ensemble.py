"""AutoAttack (Croce and Hein 2020a): four attacks, each on the images that the ones before it could not fool."""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from robust_features import inputs, noise
from robust_features.attacks.apgd import APGD
from robust_features.attacks.ball import LinfRadius
from robust_features.attacks.fab import FAB
from robust_features.attacks.square import Square
from robust_features.settings import Count, settings


@settings
class AutoAttack:
    """APGD-CE, targeted APGD-DLR and FAB, and Square in L∞ (Croce and Hein 2020a, Sec. 5, `standard`). Budget attack.

    The defaults are the standard version. Images misclassified from the start, or never, are returned unchanged. The
    targeted ratio compares four logits: with three classes APGD takes the untargeted one; with two there is none, and
    the part is left out.
    """

    kind: Literal["autoattack"] = "autoattack"
    epsilon: LinfRadius
    steps: Count = 100
    targets: Count = 9
    queries: Count = 5000

    @property
    def parts(self) -> tuple[Any, ...]:
        """The attacks, in order."""
        return (
            APGD(epsilon=self.epsilon, steps=self.steps),
            APGD(epsilon=self.epsilon, steps=self.steps, loss="dlr", targets=self.targets),
            FAB(epsilon=self.epsilon, steps=self.steps, targets=self.targets),
            Square(epsilon=self.epsilon, queries=self.queries),
        )

    __call__ = inputs.attack

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator | Tensor) -> Tensor:
        """Adversarial images, (N, C, H, W) in [0, 1], within epsilon of `images` in L∞."""
        keys = noise.image_keys(len(images), generator)
        found, rows = images.clone(), torch.arange(len(images), device=images.device)
        classes = 0
        for number, attack in enumerate(self.parts):
            if number == 1 and classes < 4:  # too few for the targeted ratio
                if classes < 3:
                    continue
                attack = replace(attack, targets=0)
            own = noise.derived(keys[rows.to(keys.device)], 1000 * number)
            found[rows] = attack.perturb(model, images[rows], labels[rows], generator=own)
            with torch.no_grad():
                logits = model(found[rows])
            classes, rows = logits.shape[1], rows[logits.argmax(1) == labels[rows]]
            if not len(rows):
                break
        return found
