"""One training shared by several processes, as torchrun starts them, on one machine or on several."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, distributed


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is: all draw the same batches, and each works on its share of every batch.

    Gradients are averaged after every batch, statistics of batch normalisation after every epoch.
    """

    rank: int = 0
    count: int = 1

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch."""
        return batch.tensor_split(self.count)[self.rank]

    def own(self, common: Generator) -> Generator:
        """The generator that this process draws from for its share: the common one itself if there is one process."""
        if self.count == 1:
            return common
        return Generator().manual_seed((common.initial_seed() * self.count + self.rank) % 2**63)

    def average(self, tensors: Iterable[Tensor | None], weight: float) -> None:
        """Replace tensors, in place, by the sum over the processes of `weight` times theirs; weights add up to 1."""
        found = [tensor for tensor in tensors if tensor is not None]
        if self.count == 1 or not found:
            return
        flat = torch.cat([tensor.detach().float().flatten() for tensor in found]) * weight
        distributed.all_reduce(flat)
        for tensor, mean in zip(found, flat.split([tensor.numel() for tensor in found]), strict=True):
            tensor.detach().copy_(mean.view_as(tensor))

    def agree(self, tensor: Tensor) -> None:
        """Replace a tensor, in place, by the first process's."""
        if self.count > 1:
            distributed.broadcast(tensor, src=0)


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun started, this one among them, each with its own GPU if any; else this one alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
