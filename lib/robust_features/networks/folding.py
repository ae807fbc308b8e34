"""The copy of a network that attacks call hundreds of times: the same function, with less memory to move."""

import copy
import warnings

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from robust_features.networks.network import Network, apart, rounding

FRESH = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)  # whose outputs are new tensors, needed for no gradient
COMPARED = 8  # images that are enough to compare a copy with its original


def folded(network: nn.Module, example: Tensor | None = None) -> nn.Module:
    """A frozen copy in eval mode: batch norms behind convolutions join them, ReLUs behind fresh tensors are in place.

    Only torch's own layers, as they are, in a plain `Sequential` are touched: no subclass, nothing hooked, parametrised
    or patched. A module might still use the layers of a `Sequential` one by one. Hence with `example`, a few images,
    the copy is compared with the original, at every stage of a `Network`; if they differ by more than rounding, a copy
    with nothing folded is returned, and a RuntimeWarning says so. Draws no random numbers. Raises TypeError if it
    cannot be copied.

    >>> layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    >>> folded(layers, torch.rand(2, 3, 8, 8))
    Sequential(
      (0): Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
      (1): Identity()
      (2): ReLU(inplace=True)
    )
    """
    quick = _frozen_copy(network)
    changed = sum(_fold(layers) for layers in [*quick.modules()] if _is_plain_sequential(layers))
    if not changed or example is None:
        return quick
    plain, example = _frozen_copy(network), example.to(next(network.parameters(), example).device)
    try:
        difference = _difference(plain, quick, example)
        reason = f"they differ by {difference:.1e} of the output's norm"
    except Exception as error:  # for a network unlike any that was foreseen
        difference, reason = torch.inf, f"{type(error).__name__}: {error}"
    if difference <= rounding(example):
        return quick
    said = f"batch norms are not folded: the folded copy is not this network's equal on the example ({reason})"
    warnings.warn(f"{said}; it is run as it is, which is slower", RuntimeWarning, stacklevel=2)
    return plain


def _frozen_copy(network: nn.Module) -> nn.Module:
    """Copies what deepcopy refuses, too: tensors that old-style weight norm and pruning compute before every pass."""
    computed = [value for module in network.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    memo = {id(tensor): tensor.detach().clone() for tensor in computed if not tensor.is_leaf}
    try:
        with torch.no_grad():  # a scripted module records that its parameters were copied
            return copy.deepcopy(network, memo).eval().requires_grad_(False)
    except Exception as error:
        said = (
            "attacks work on a copy of the network, and it cannot be copied; "
            "keep no generators, files or results in its"
        )
        raise TypeError(f"{said} modules ({error})") from error


def _is_plain_sequential(layers: nn.Module) -> bool:
    """A subclass that only builds its layers counts (torchvision has some): its forward is Sequential's."""
    kind = type(layers)
    inherits = isinstance(layers, nn.Sequential) and kind.forward is nn.Sequential.forward
    return inherits and kind.__iter__ is nn.Sequential.__iter__ and _untouched(layers)


def _untouched(layer: nn.Module) -> bool:
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return not any(hooks) and "forward" not in vars(layer)


def _fold(layers: nn.Sequential) -> bool:
    """Fold what may be folded, keeping every layer's place and name; returns whether there was anything."""
    changed, before, position = False, None, 0
    for number, layer in enumerate([*layers]):
        if _foldable(before, layer):
            before = fuse_conv_bn_eval(before, layer)  # a new one: another Sequential may hold the convolution, too
            layers[position], layers[number], changed = before, nn.Identity(), True
            continue
        if type(layer) is nn.ReLU and _untouched(layer) and type(before) in FRESH and _untouched(before):
            layers[number], changed = nn.ReLU(inplace=True), True
        before, position = layer, number
    return changed


def _foldable(convolution: nn.Module | None, norm: nn.Module) -> bool:
    if type(convolution) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d or norm.running_mean is None:
        return False
    float32 = convolution.weight.dtype == norm.running_mean.dtype == torch.float32
    fits, frozen = len(convolution.weight) == len(norm.running_mean), not (convolution.training or norm.training)
    return float32 and fits and frozen and _untouched(convolution) and _untouched(norm)


def _difference(plain: nn.Module, quick: nn.Module, example: Tensor) -> float:
    """The largest relative difference of their outputs. Raises what either raises, even for an overwritten gradient."""
    with torch.autocast(example.device.type, enabled=False):
        with torch.no_grad():
            wanted = _outputs(plain, example)
        with torch.enable_grad():
            images = example.clone().requires_grad_()
            found = _outputs(quick, images)
            if found[0].requires_grad:
                torch.autograd.grad(found[0].sum(), images, allow_unused=True)
    return max(apart(a, b.detach()) for a, b in zip(wanted, found, strict=True))


def _outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Logits, and every stage's output; two networks are given the same random numbers."""
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        outputs = [network(images), *(network.activations(images).values() if isinstance(network, Network) else [])]
    return [output for output in outputs if isinstance(output, Tensor)]
