import pytest
from sample_networks import quick

from companion import params, plan
from companion.resolve import written
from robust_features.attacks import APGD, FAB, PGD, AutoAttack, CarliniWagner, Square
from robust_features.bottleneck import Bottleneck
from robust_features.networks import VGG16
from robust_features.training import Training
from robust_features.training.loop import SGD
from robust_features.training.objectives import Adversarial, Standard, TradesKim

ABOUT = "networks@mine/main", "mine", VGG16(), 32
PGD_3 = PGD(epsilon=0.1, step_size=0.05, steps=3)


@pytest.mark.parametrize(
    "attack, expected",
    [
        (PGD_3, 3),
        (PGD(epsilon=0.1, step_size=0.05, steps=20, restarts=5, until="fooled"), 20 * 0.5 + 4 * 20 * 0.5),
        (APGD(epsilon=0.1, steps=100), 50),
        (FAB(epsilon=0.1, steps=10), 10 * 9 * 0.5),
        (Square(epsilon=0.1, queries=300), 300 / 3 * 0.5),
        (CarliniWagner(steps=200), 200),
        (AutoAttack(epsilon=0.1, steps=10, targets=2, queries=30), 0.5 * (10 + 20 + 20 + 10)),
    ],
)
def test_an_attack_that_leaves_fooled_images_costs_less_and_a_search_does_not(attack, expected):
    assert plan.passes(attack, surviving=0.5) == pytest.approx(expected)


@pytest.mark.parametrize(
    "objective, each", [(Standard(), 1), (Adversarial(attack=PGD_3), 4), (TradesKim(attack=PGD_3), 5)]
)
def test_a_training_counts_what_its_objective_does_with_an_image(objective, each):
    model = Training(dataset="digits", network=VGG16(), objective=objective, optimiser=SGD(learning_rate=0.1), epochs=2)
    found = sum(work.passes for work in plan.trained(ABOUT, model, images=100, validation=30))
    assert found == pytest.approx(2 * (100 * each + 30 / 3))


def test_clean_images_are_distilled_with_three_labels_and_attacked_ones_with_two():
    assert plan.distilled(Bottleneck(steps=10), sets=2, images=100) == 10 * 100 * 7


def test_every_heavy_stage_of_a_scale_is_in_its_plan():
    run = quick()
    kinds = {"networks": run.networks, "construct": run.constructed, "transfer": run.transfers}
    assert {work.stage for work in plan.works(run)} == {f"{kind}@{key}" for kind, keys in kinds.items() for key in keys}
    assert all(work.images >= 0 and work.calls >= 0 for work in plan.works(run))


def test_batches_of_images_that_are_not_fooled_go_on_to_the_last_step():
    attack = PGD(epsilon=0.1, step_size=0.05, steps=20, until="fooled")
    (work,) = plan.attacked(ABOUT, attack, images=4000, surviving=0.05)
    assert (work.images, work.calls, work.precision) == (4000, 4 * 20, "fp32")
    (until_the_end,) = plan.attacked(ABOUT, PGD_3, images=4000, surviving=0.05)
    assert (until_the_end.images, until_the_end.calls, until_the_end.precision) == (12000, 4 * 3, "bf16")


def test_a_set_with_an_image_for_every_class_counts_them_all_and_noise_needs_no_network():
    found = {work.record: work for work in plan.works(quick()) if work.stage.startswith("construct@")}
    assert found["springer/main/zero"].images == 10 * (1000 + 100) * 6
    assert found["ilyas/main/noise"].images == 0


def test_a_paper_is_given_the_stages_of_others_that_it_needs():
    stages, data = plan.needs(quick(), "ilyas")
    assert {"networks@springer/victims", "transfer@ilyas/main", "networks@ilyas/sources"} <= {*stages}
    assert "networks@springer/sources" not in stages and data == ["digits-16"]


def test_every_paper_fits_into_eight_minutes_of_one_gpu():
    run = params.check(written(), "gpu")[1]
    found = plan.subtotals(run, plan.counted(run))
    assert [*found.index] == ["kim", "xu", "ilyas", "springer"]
    assert found["minutes"].max() <= 8
