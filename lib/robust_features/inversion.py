"""Feature visualisation by inversion: images whose features resemble given ones (Olah et al. 2017; Kim et al. 2021)."""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor

from robust_features.settings import Count, NonNegative, Number, Positive, settings

GREY = 0.5  # what a view shows beyond the image's border
COLOURS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))  # root of ImageNet's colour covariance (lucid)


@settings
class Inversion:
    """How to look for an image: Adam on its Fourier coefficients, under another random view of the image at every step.

    The loss of an image is −a·f·s² + blur·‖x − blurred x‖², with a its features, f the target and s their similarity:
    a·f/‖f‖ is Kim et al.'s ("kim"), which also rewards strong features; "cosine" divides by ‖a‖ too. Cosine is the
    default because, on two networks trained adversarially on digits, its images correlated better with the originals
    (0.64 against 0.57, 0.55 against 0.49; 50 images each).

    The authors' `blur` is 0.01 at 32×32 and −0.5 at 64×64. It has little effect there: "kim" grows with the cube of the
    features' norm. Under "cosine" a negative blur fills the image with a checkerboard, so take −0.5 with "kim" only.
    """

    steps: Count = 512
    learning_rate: Positive = 0.05
    similarity: Literal["cosine", "kim"] = "cosine"
    blur: Number = 0.01
    jitter: NonNegative = 5  # largest shift in pixels; the authors' two random crops shift by up to 4 and 1
    rotation: NonNegative = 5  # largest angle in degrees
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.9, 0.95, 1.05, 1.1, 1, 1, 1, 1)


def invert(
    features: Callable[[Tensor], Tensor], targets: Tensor, settings: Inversion, *, size: int, generator: Generator
) -> Tensor:
    """Find N images, (N, 3, size, size) in [0, 1], whose `features` resemble the N `targets`, (N, C, h, w).

    `features` maps images in [0, 1] to such targets; eval mode and frozen parameters are the caller's duty. `generator`
    is a CPU generator. All images start from the same noise and share each step's view, and the loss is a sum over
    images: an image depends on its target and the seed, not on its batch. A target of zeros gives grey (a
    checkerboard if `blur` is negative). One seed gives identical images on a CPU; on a GPU the sampling's gradient adds
    in any order, so that images differ by rounding. Raises ValueError if features and targets differ in shape.

    >>> original = torch.linspace(0, 1, 8).expand(1, 3, 8, 8)  # brighter to the right
    >>> settings = Inversion(steps=60, jitter=0, rotation=0, scales=(1.0,))
    >>> found = invert(lambda x: x - 0.5, original - 0.5, settings, size=8, generator=Generator().manual_seed(0))
    >>> torch.corrcoef(torch.stack([original.flatten(), found.flatten()]))[0, 1] > 0.9
    tensor(True)
    """
    start = 0.01 * torch.randn(1, 3, size, size // 2 + 1, 2, generator=generator)
    spectrum = start.to(targets).repeat(len(targets), 1, 1, 1, 1).requires_grad_()
    views = random_views(settings, size, generator).to(targets)
    optimizer = torch.optim.Adam([spectrum], lr=settings.learning_rate)
    for view in views:
        images = to_images(spectrum, size)
        gain = alignment(features(look(images, view)), targets, settings.similarity)
        loss = settings.blur * roughness(images) - gain
        (spectrum.grad,) = torch.autograd.grad(loss.sum(), spectrum)  # leaves the network's own gradients alone
        optimizer.step()
    return to_images(spectrum.detach(), size)


def to_images(spectrum: Tensor, size: int) -> Tensor:
    """Images, (N, 3, size, size) in (0, 1), of real and imaginary Fourier coefficients, (N, 3, size, size // 2 + 1, 2).

    Coefficients are divided by their frequency and colours are mixed as in natural images, so that equal steps in all
    coefficients change all frequencies and colours in natural proportion (Olah et al. 2017, "Preconditioning").
    """
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)).clamp(min=1 / size)
    waves = torch.view_as_complex(spectrum / frequency.to(spectrum)[..., None])
    pixels = torch.fft.irfft2(waves, s=(size, size), norm="ortho") / 4  # lucid's constant
    colours = torch.tensor(COLOURS).to(spectrum)
    return torch.einsum("rc,nchw->nrhw", colours / colours.norm(dim=0).max(), pixels).sigmoid()


def random_views(settings: Inversion, size: int, generator: Generator) -> Tensor:
    """One random shift, rotation and scale for each step: (steps, 2, 3) maps from a view's coordinates to the image's.

    A view keeps the image's size. The authors resize the scaled and grey-padded image back to the input size, which
    cancels its random scale and shrinks it to about 0.84; here the scale acts and the image fills the view.
    """
    steps = settings.steps
    scale = torch.tensor(settings.scales)[torch.randint(len(settings.scales), (steps,), generator=generator)]
    angle = math.radians(settings.rotation) * (2 * torch.rand(steps, generator=generator) - 1)
    reach = 2 * settings.jitter / size  # a side is 2 units long
    shift = reach * (2 * torch.rand(steps, 2, 1, generator=generator) - 1)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    return torch.cat([torch.stack([cos, -sin, sin, cos], dim=1).view(steps, 2, 2), shift], dim=2)


def look(images: Tensor, view: Tensor) -> Tensor:
    """Images (N, 3, H, W) as seen through one view, (2, 3), grey beyond their border."""
    grid = F.affine_grid(view.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images - GREY, grid, align_corners=False) + GREY


def alignment(features: Tensor, targets: Tensor, similarity: Literal["cosine", "kim"]) -> Tensor:
    """a·f·s² of each image, (N,), from features and targets of shape (N, C, h, w)."""
    if features.shape != targets.shape:
        shapes = f"features {tuple(features.shape)}, targets {tuple(targets.shape)}"
        raise ValueError(
            f"{shapes}: the shapes must be the same; is `size` that of the targets' images, which have to be square?"
        )
    features, targets = features.flatten(1), targets.flatten(1)
    dot, norm = (features * targets).sum(1), targets.norm(dim=1)
    if similarity == "cosine":
        norm = norm * features.norm(dim=1)
    return dot * (dot / (norm + 1e-10)) ** 2


def roughness(images: Tensor) -> Tensor:
    """Squared distance, (N,), of each image from its blurred copy, which counts as constant.

    The 3×3 kernel weighs its centre 1 and the rest ½ (Kim et al.'s code), renormalised at the border.
    """
    blurred = 0.9 * F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False) + 0.1 * images
    return (images - blurred.detach()).square().flatten(1).sum(1)
