"""Input from outside is checked once, where it enters: the loops behind it trust it, and no step waits for a check.

Images are (N, C, H, W), float32 or float64, in [0, 1]; labels are integers, (N,). A network computes in its weights'
precision, and results have the images'. For an empty batch the result is empty. No result carries a graph, and nothing
depends on whether the caller is inside torch.no_grad() or torch.inference_mode().
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

SEED = 0  # of an attack that is given no generator
ROUNDING = 1e-6  # images outside of [0, 1] by no more, as after resizing, are clipped


def attack(
    self: Any, model: nn.Module, images: Tensor, labels: Tensor, *, generator: Generator | Tensor | None = None
) -> Tensor:
    """Adversarial images, (N, C, H, W) in [0, 1], of images in [0, 1] and (N,) labels: `perturb` says what they are.

    Without a `generator` the draws are those of the seed 0, the same in every call. float32 and float64 images come
    back as such. Raises ValueError, in one line, for invalid images or labels, a network on another device or of 16
    bits, and one that gives NaN; warns if it gives probabilities, not logits.
    """
    with gradients():
        x = pixels(model, images)
        y = classes(labels, x)
        if not len(x):
            return images.detach().clone()
        watched, draws = _Watched(model, y), Generator().manual_seed(SEED) if generator is None else generator
        x = self.perturb(watched, x, y, generator=draws)
        finite(watched.last)
        finite(x, "the network's gradients give")
        watched.finite_on_the_way()
    return x.detach().to(images.dtype)


@contextmanager
def gradients() -> Iterator[None]:
    """Gradients can be taken inside, whatever mode the caller is in; also a decorator."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def pixels(network: Any, images: Tensor) -> Tensor:
    """(N, C, H, W) images in [0, 1], in the network's precision. Raises ValueError for others and another device."""
    images = numbers(network, images, "images")
    if images.ndim != 4:
        hint = ": one image is images[None]" if images.ndim == 3 else ""
        raise ValueError(f"images must be (N, C, H, W), found {(*images.shape,)}{hint}")
    low, high = torch.stack(images.aminmax()).tolist() if images.numel() else (0, 1)
    if 0 <= low and high <= 1:
        return images
    if -ROUNDING <= low and high <= 1 + ROUNDING:
        return images.clamp(0, 1)
    bad = int(images.isnan().flatten(1).any(1).sum())
    found = f"NaN in {bad} of {len(images)}" if bad else f"[{low:.7g}, {high:.7g}]"
    hint = "" if bad else ": networks normalise themselves (stage `normalize`), and bytes are divided by 255"
    raise ValueError(f"images must be in [0, 1], found {found}{hint}")


def numbers(network: Any, values: Tensor, name: str = "features") -> Tensor:
    """Images or features without graph, in the network's precision.

    Raises ValueError for 16 bits, for integers and for another device.
    """
    if not isinstance(values, Tensor):
        raise ValueError(f"{name} must be a tensor, found {type(values).__name__}")
    weights = network.parameters() if isinstance(network, nn.Module) else ()
    weight = next((weight for weight in weights if weight.is_floating_point()), values)
    for what, dtype in ((name, values.dtype), ("the network", weight.dtype)):
        if dtype not in (torch.float32, torch.float64):
            sixteen = "take .float(), and torch.autocast to compute in 16 bits"
            hint = sixteen if dtype.is_floating_point else "bytes are divided by 255"
            raise ValueError(f"{what} must be float32 or float64, found {_word(dtype)}: {hint}")
    if weight.device != values.device:
        raise ValueError(f"the network is on {weight.device}, the {name} on {values.device}: move one of them")
    if weight is not values and weight.is_inference() and torch.is_grad_enabled():
        raise ValueError(
            "the network was made in torch.inference_mode(), which allows no gradients: copy.deepcopy it outside"
        )
    return _ordinary(values.detach()).to(weight.dtype)


def classes(labels: Tensor, images: Tensor) -> Tensor:
    """(N,) int64 labels, where the images are. Raises ValueError for another shape, or what is not an integer."""
    if not isinstance(labels, Tensor):
        raise ValueError(f"labels must be a tensor, found {type(labels).__name__}")
    unfit = labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
    if labels.shape != images.shape[:1] or unfit:
        hint = ": of one-hot labels take labels.argmax(1)" if labels.ndim == 2 and labels.shape[1] > 1 else ""
        raise ValueError(f"labels must be int64 ({len(images)},), found {_word(labels.dtype)} {(*labels.shape,)}{hint}")
    return _ordinary(labels).to(images.device, torch.int64)


def logits(found: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless these are finite logits, (n, K), for n labels below K; warn if they are probabilities."""
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(labels) or found.shape[1] < 2:
        what = (*found.shape,) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"the network must give logits ({len(labels)}, two classes or more), found {what}")
    found = finite(found.detach()).float()
    if not len(found):
        return
    sums, (first, last) = found.sum(1), labels.aminmax()
    probable = (found >= 0).all() & ((sums - 1).abs() < 1e-3).all()
    first, last, probable = torch.stack([first, last, probable.long()]).tolist()
    if not 0 <= first <= last < found.shape[1]:
        outputs = found.shape[1]
        raise ValueError(
            f"labels must be 0 to {outputs - 1}, found {first} to {last}: the network has {outputs} outputs"
        )
    if probable:
        warnings.warn(
            "the network gives probabilities, not logits: their gradients vanish where it is sure, and of AutoAttack "
            "the DLR loss and FAB are void; leave its softmax out",
            stacklevel=2,
        )


def finite(outputs: Tensor, what: str = "the network gives") -> Tensor:
    """(N, …) outputs. Raises ValueError if one is NaN or infinite: NaN's argmax is class 0, which may be the label."""
    bad = ~outputs.flatten(1).isfinite().all(1)
    if bad.any():
        word = "NaN" if outputs.isnan().any() else "infinity"
        raise ValueError(f"{what} {word} for {int(bad.sum())} of {len(outputs)} images: are its weights finite?")
    return outputs


class _Watched:
    """A network whose outputs and gradients are checked in every pass: the first before the next step, all at the end.

    What a step finds stays on the device, and nothing waits for it.
    """

    def __init__(self, network: Any, labels: Tensor):
        self._network, self._labels, self._climbs = network, labels, False
        self._broken = {
            word: torch.zeros((), dtype=torch.int64, device=labels.device) for word in ("outputs", "gradients")
        }
        self.last = torch.zeros(0, 2)

    def finite_on_the_way(self) -> None:
        """Raise ValueError if a pass gave NaN or infinity: no step leads on, and the image would pass for robust."""
        for word, passes in self._broken.items():
            if passes:
                raise ValueError(
                    f"the network's {word} were NaN or infinite in {int(passes)} of the attack's passes, though not in "
                    "the first: are they finite wherever images are in [0, 1]?"
                )

    def __call__(self, images: Tensor) -> Tensor:
        return self._seen(self._network(self._entering(images)))

    def features(self, images: Tensor, at: str | None = None) -> Tensor:
        return self._network.features(self._entering(images), at)

    def activations(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self._network.activations(self._entering(images))
        self._seen(next(reversed(outputs.values())))
        return outputs

    def head(self, features: Tensor, at: str | None = None) -> Tensor:
        return self._seen(self._network.head(features, at), check=False)  # `distil` does

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def _entering(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            images.register_hook(self._climb)
        return images

    def _climb(self, gradient: Tensor) -> None:
        if not self._climbs:
            # the sign of NaN is 0: such a network would pass for robust
            finite(gradient, "the network's gradients give")
            self._climbs = True
        self._broken["gradients"] += ~gradient.sum().isfinite()

    def _seen(self, found: Tensor, *, check: bool = True) -> Tensor:
        if check and self._labels is not None:
            logits(found, self._labels)
            self._labels = None
        self.last = found.detach()
        if self.last.numel():
            self._broken["outputs"] += ~self.last.isfinite().all()
        return found


def _ordinary(values: Tensor) -> Tensor:
    """Tensors of inference mode cannot be kept for a gradient, their copies can."""
    return values.clone() if values.is_inference() else values


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
