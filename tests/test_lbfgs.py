import pytest
import torch
from torch import Generator

from robust_features.lbfgs import MEMORY, _direction, _pair, approach

pytestmark = pytest.mark.numeric


def linear(outputs, seed=0):
    """A linear map of images of 2 × 2 pixels, starts, and the outputs of other images."""
    draw = Generator().manual_seed(seed)
    matrix, wanted = torch.randn(12, outputs, generator=draw), torch.rand(4, 3, 2, 2, generator=draw)
    return lambda x: x.flatten(1) @ matrix, torch.rand(4, 3, 2, 2, generator=draw), wanted.flatten(1) @ matrix


def distances(outputs, goal, *images):
    return [(outputs(x) - goal).norm(dim=1) for x in images]


def test_a_direction_is_that_of_the_dense_update():
    draw = Generator().manual_seed(0)
    hessian = torch.randn(8, 8, generator=draw, dtype=torch.float64)
    hessian = hessian @ hessian.T + torch.eye(8)
    steps = torch.randn(MEMORY, 3, 8, generator=draw, dtype=torch.float64)
    steps[2, 1] = 0  # a pair without curvature teaches nothing
    pairs = [_pair(s, s @ hessian) for s in steps]
    gradient, objective = torch.randn(3, 8, generator=draw, dtype=torch.float64), torch.ones(3)
    found = _direction(gradient, objective, pairs)
    identity = torch.eye(8, dtype=torch.float64)
    for row in range(3):
        s, y = (steps[-1, row], steps[-1, row] @ hessian)
        inverse = identity * ((s @ y) / (y @ y) * 2 / (gradient[row] @ gradient[row])).sqrt()
        for step in steps[:, row]:
            if step.any():
                change, rho = step @ hessian, 1 / (step @ hessian @ step)
                left = identity - rho * torch.outer(step, change)
                inverse = left @ inverse @ left.T + rho * torch.outer(step, step)
        torch.testing.assert_close(found[row], inverse @ gradient[row])


def test_a_linear_problem_is_solved_within_the_pixel_range():
    outputs, start, goal = linear(5)
    found = approach(outputs, lambda z: (z - goal).norm(dim=1), start, steps=60)
    assert 0 <= found.min() and found.max() <= 1
    before, after = distances(outputs, goal, start, found)
    assert (after < 1e-3 * before).all()


def test_the_first_step_goes_half_of_the_way_of_a_linear_problem():
    outputs, _, goal = linear(1)  # one output: its gradient leads straight to the goal
    start = torch.full((4, 3, 2, 2), 0.5)
    goal = outputs(start) + 0.1 * (goal - outputs(start)).sign()  # near enough for no pixel to end its range
    found = approach(outputs, lambda z: (z - goal).norm(dim=1), start, steps=1)
    before, after = distances(outputs, goal, start, found)
    torch.testing.assert_close(after, before / 2)


def test_images_do_not_feel_the_others_of_their_batch():
    outputs, start, goal = linear(5)
    together = approach(outputs, lambda z: (z - goal).norm(dim=1), start, steps=10)
    alone = approach(outputs, lambda z: (z - goal[1:2]).norm(dim=1), start[1:2], steps=10)
    torch.testing.assert_close(together[1:2], alone)


def test_an_image_that_is_there_already_stays():
    outputs, start, _ = linear(5)
    goal = outputs(start)
    assert torch.equal(approach(outputs, lambda z: (z - goal).norm(dim=1), start, steps=3), start)
