"""One training shared by two processes, on the CPU."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sample_networks import CPU
from torch import Generator, distributed, nn

from companion.datasets import Digits, read
from robust_features.batches import Augmentation
from robust_features.networks import VGG16
from robust_features.regularisers import IBRAR, BatchMask, PersistentMask
from robust_features.settings import UserError
from robust_features.training import SGD, StepLR, Training, train
from robust_features.training.objectives import Standard
from robust_features.training.processes import Processes, joined

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="this build of torch has no torch.distributed")
SETTINGS = Training(
    dataset="digits",
    network=VGG16(width=0.0625),
    objective=Standard(),
    optimiser=SGD(learning_rate=0.05, momentum=0.9),
    schedule=StepLR(every=2),
    epochs=3,
    batch_size=33,  # which two do not share equally
    augmentation=Augmentation(padding=2, flip=False),
)
MASKED = replace(SETTINGS, mask=BatchMask(every=2, least_of_labels=0.1), regulariser=IBRAR(layers=("block5",)))
CASES = {
    "plain": SETTINGS,
    "masked": MASKED,
    "persistent": replace(SETTINGS, mask=PersistentMask(fraction=0.1, images=100)),
}


def splits():
    return read(Digits(train=264, validation=50, test=20, size=32), seed=0)


class Stopped(Exception):
    pass


def stop_after_two(line):
    if line.startswith("epoch 2/"):
        raise Stopped


def gradient_of_shares(processes):
    """Of the mean of squares over a batch of seven, each process given its part."""
    layer, x = nn.Linear(3, 1, bias=False), torch.arange(21.0).view(7, 3)
    nn.init.ones_(layer.weight)
    mine = processes.share(x)
    layer(mine).square().mean().backward()
    processes.average([layer.weight.grad, None], len(mine) / len(x))
    return layer.weight.grad


def one_of_two(folder):
    """What torchrun runs: all that the tests look at, in one start."""
    torch.set_num_threads(1)
    with joined() as found:
        how = dict(hardware=CPU, processes=found)
        results = {name: train(splits(), case, report=str, **how) for name, case in CASES.items()}
        again = train(splits(), SETTINGS, report=str, **how)
        state = folder / "state.pt"
        try:
            train(splits(), SETTINGS, resume=state, report=stop_after_two, **how)
        except Stopped:
            resumed = train(splits(), SETTINGS, resume=state, report=str, **how)
        alone = train(splits(), SETTINGS, resume=state, report=str, hardware=CPU)  # all is done: the stage that follows
        seen = {name: (r.network.state_dict(), r.history) for name, r in results.items()}
        seen |= {"again": (again.network.state_dict(), again.history)}
        seen |= {"resumed": (resumed.network.state_dict(), resumed.history)}
        seen |= {"count": found.count, "alone": alone.processes, "gradient": gradient_of_shares(found)}
        torch.save(seen, folder / f"{found.rank}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command = [*torchrun, "--nproc-per-node", "2", __file__, folder]
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}  # the host's name may not resolve
    options = dict(capture_output=True, text=True, timeout=300, cwd=Path(__file__).parent)
    done = subprocess.run(command, env=os.environ | loopback, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def same(one, two):
    (weights, history), (others, other) = one, two
    return history == other and all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_gradient_of_shares_is_the_gradient_of_the_batch(both):
    x = torch.arange(21.0).view(7, 3).double()
    expected = (2 * x.sum(1, keepdim=True) * x).mean(0)
    assert both[0]["count"] == 2
    for seen in both:
        torch.testing.assert_close(seen["gradient"].double()[0], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_all_processes_end_with_one_network(both, name):
    assert same(both[0][name], both[1][name])


@pytest.mark.parametrize("name", ["again", "resumed"])
def test_repeated_or_interrupted_it_gives_the_same_bits(both, name):
    assert same(both[0]["plain"], both[0][name])


def test_who_goes_on_alone_knows_that_it_was_shared(both):
    assert both[0]["alone"] == 2


def test_the_result_is_that_of_one_process_within_the_spread_of_seeds(both):
    alone = [train(splits(), replace(SETTINGS, seed=seed), hardware=CPU, report=str).history for seed in range(4)]
    last = torch.tensor([history[-1]["loss"] for history in alone])
    assert abs(both[0]["plain"][1][-1]["loss"] - last.mean()) < 3 * last.std()
    assert last.mean() < 0.9 * alone[0][0]["loss"], "it means something once they have learnt"


def test_of_one_process_nothing_is_shared_and_its_draws_go_on():
    batch, generator = torch.arange(5), Generator().manual_seed(7)
    with joined() as found:
        assert found == Processes() and found.own(generator) is generator
        assert torch.equal(found.share(batch), batch)


def test_shares_too_small_for_batch_normalisation_are_refused():
    with pytest.raises(UserError, match="batch_size: 33 leaves 20 processes less than two images each"):
        train(splits(), SETTINGS, hardware=CPU, processes=Processes(0, 20))


if __name__ == "__main__":
    one_of_two(Path(sys.argv[1]))
