"""Networks whose rounding is too small to change a decision.

In another batch kernels add in another order, and where that turns the sign of one gradient, the images of an attack
part ways.
"""

import copy

from torch import nn


def precise(network: nn.Module) -> nn.Module:
    """A copy that computes in double precision, from float32 images or features."""
    network = copy.deepcopy(network).double()
    for module in network.modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
    return network
