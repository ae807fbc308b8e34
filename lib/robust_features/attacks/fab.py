"""Fast adaptive boundary attack (Croce and Hein 2020b): steps to the linearised boundary, drawn back to the image."""

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor, nn

from robust_features import inputs
from robust_features.attacks.ball import Ball, Norm, dot, fits_norm, per_image
from robust_features.attacks.survivors import look
from robust_features.attacks.targets import each_target
from robust_features.settings import Count, Number, Pixels, Share, Whole, settings

Part = Annotated[Share, Field(gt=0)]
NEWTON = 9  # steps at most; two to five are enough unless pixels have little room left


@settings
class FAB:
    """FAB (Croce and Hein 2020b, Alg. 1), stopped at an image's first fooled iterate within epsilon. Budget attack.

    Untargeted, every step goes to the nearest of the linearised boundaries, at the price of a gradient for every class;
    with `targets`, that many runs with two logits each, towards the next likeliest wrong class. Images misclassified
    from the start, or never within epsilon, are returned unchanged.
    """

    kind: Literal["fab"] = "fab"
    epsilon: Pixels
    steps: Count = 100
    targets: Whole = 0
    norm: Norm = "linf"
    overshoot: Annotated[Number, Field(ge=1)] = 1.05  # their η
    pull: Part = 0.9  # their β: back towards the image once it is fooled
    alpha_max: Part = 0.1
    _fits_norm = model_validator(mode="after")(fits_norm)

    __call__ = inputs.attack

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator | Tensor) -> Tensor:
        """Adversarial images, (N, C, H, W) in [0, 1], within epsilon of `images`; nothing is drawn at random."""
        with torch.no_grad():
            ranked = model(images).argsort(1, descending=True)

        def attempt(rows: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
            rivals = ranked[rows, numbers + 1][:, None] if self.targets else ranked[rows, 1:]
            return self._run(model, images[rows], labels[rows], rivals)

        return each_target(attempt, images, ranked[:, 0] == labels, max(1, min(self.targets, ranked.shape[1] - 1)))

    def _run(self, model: nn.Module, centre: Tensor, labels: Tensor, rivals: Tensor) -> tuple[Tensor, Tensor]:
        """The first misclassified iterate within epsilon of each image, or its centre, and which are misclassified."""
        size = Ball(self.norm, self.epsilon).size
        found, fooled_at_all = centre.clone(), torch.zeros_like(labels, dtype=torch.bool)
        rows, images, first = torch.arange(len(centre), device=centre.device), centre, centre
        done = torch.zeros_like(fooled_at_all)
        for number in range(self.steps + 1):
            images = images.detach().requires_grad_(number < self.steps)
            logits = model(images).float()
            fooled = logits.argmax(1) != labels
            near = fooled & (size(images.detach() - centre) <= self.epsilon)
            first, done = torch.where(per_image(near & ~done), images.detach(), first), done | near
            leave = (look(images, number) or number == self.steps) and bool(done.any())
            if leave:
                found[rows[done]], fooled_at_all[rows[done]] = first[done], True
            if number == self.steps or (leave and done.all()):
                break
            gap, gradient = self._nearest_boundary(logits, images, labels, rivals)
            images = images.detach()
            if leave:
                going = ~done
                rows, centre, labels, rivals, fooled = (t[going] for t in (rows, centre, labels, rivals, fooled))
                images, gap, gradient, first, done = (t[going] for t in (images, gap, gradient, first, done))
            images = self._step(images, centre, fooled, gap, gradient)
        return found, fooled_at_all

    def _nearest_boundary(
        self, logits: Tensor, images: Tensor, labels: Tensor, rivals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """z_rival − z_y and its gradient for the rival whose linearised boundary is nearest, (n,) and (n, C, H, W)."""
        own = logits.gather(1, labels[:, None])
        gaps = logits.gather(1, rivals) - own
        if rivals.shape[1] == 1:
            (gradient,) = torch.autograd.grad(gaps.sum(), images)
            return gaps.detach().squeeze(1), gradient
        gradients = [torch.autograd.grad(gap.sum(), images, retain_graph=True)[0] for gap in gaps.unbind(1)]
        dual = [gradient.flatten(1).norm(p=1 if self.norm == "linf" else 2, dim=1) for gradient in gradients]
        nearest = (gaps.detach().abs() / torch.stack(dual, 1).clamp_min(1e-12)).argmin(1)
        image = torch.arange(len(images), device=images.device)
        return gaps.detach()[image, nearest], torch.stack(gradients, 1)[image, nearest]

    def _step(self, images: Tensor, centre: Tensor, fooled: Tensor, gap: Tensor, gradient: Tensor) -> Tensor:
        """Onto the linearised boundary from the iterate and from the image, and between the two (their Eqs. 8 to 10).

        A fooled iterate is first pulled back; the boundary stays the one found where it was, which saves the authors'
        second pass.
        """
        pulled = torch.where(per_image(fooled), centre + self.pull * (images - centre), images)
        one = to_hyperplane(pulled, gradient, dot(gradient, images - pulled) - gap, self.norm)
        two = to_hyperplane(centre, gradient, dot(gradient, images - centre) - gap, self.norm)
        size = Ball(self.norm, self.epsilon).size
        alpha = per_image((size(one) / (size(one) + size(two)).clamp_min(1e-12)).clamp_max(self.alpha_max))
        return ((1 - alpha) * (pulled + self.overshoot * one) + alpha * (centre + self.overshoot * two)).clamp(0, 1)


def to_hyperplane(images: Tensor, gradient: Tensor, residual: Tensor, norm: Norm) -> Tensor:
    """The δ of least norm with ⟨gradient, δ⟩ = residual and images + δ in [0, 1], or the corner nearest to it.

    Every pixel moves the way that helps, by min(λ, room) in L∞ and by min(λ·|gradient|, room) in L2. ⟨gradient, δ⟩ is
    then concave and piecewise linear in λ: Newton's steps from below are exact once no further pixel runs out of room.
    """
    x, g = images.flatten(1), gradient.flatten(1)
    way = g.sign() * residual.sign()[:, None]
    weight, wanted = g.abs(), residual.abs()[:, None]
    room = torch.where(way > 0, 1 - x, x)
    speed = torch.ones_like(x) if norm == "linf" else weight
    full, most, slope = room / speed.clamp_min(1e-30), weight * room, weight * speed
    scale = torch.zeros_like(wanted)
    for number in range(NEWTON):
        spent = full <= scale
        left = wanted - (most * spent).sum(1, keepdim=True)
        further = left / (slope * ~spent).sum(1, keepdim=True).clamp_min(1e-30)
        before, scale = scale, torch.maximum(scale, further)
        if look(images, number) and torch.equal(scale, before):
            break
    scale = scale.clamp_max(full.amax(1, keepdim=True))
    return (way * torch.minimum(scale * speed, room)).view_as(images)
