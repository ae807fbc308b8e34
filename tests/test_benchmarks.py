"""The recorded benchmarks keep their promises, and the stopwatch divides the right way round."""

import json
import sys

import pytest
import torch

from companion.datasets import ImageSet
from companion.paths import ROOT

sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed

from benchmarks import peers
from benchmarks.run import RESULTS, TOLERANCE, compared, measure
from benchmarks.works import Bench, Work, works

from robust_features.hardware import HardwareSettings, choose
from robust_features.networks import VGG16, build

FILES = sorted(RESULTS.glob("*.json"))
KEYS = {"work", "peer", "images", "rounds", "ours_s", "peer_s", "ratio", "target", "stated", "ours_profile"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_recorded_result_says_where_when_and_of_what_code(path):
    found = json.loads(path.read_text("utf-8"))
    assert {"hardware", "versions", "commit", "date", "results"} <= set(found) and found["results"]
    assert found["hardware"]["name"] and found["versions"]["torch"] and found["commit"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_recorded_ratios_are_theirs_over_ours_and_accuracies_agree_or_say_so(path):
    for row in json.loads(path.read_text("utf-8"))["results"]:
        assert KEYS <= set(row) and row["ratio"] == pytest.approx(row["peer_s"] / row["ours_s"])
        assert row["ours_min_s"] <= row["ours_s"] <= row["ours_max_s"]
        pairs = {
            name: (row[name], row[f"peer{name[4:]}"]) for name in row if name.startswith("ours_") and "acc" in name
        }
        if any(abs(ours - theirs) > TOLERANCE for ours, theirs in pairs.values()):
            assert row["stated"], f"{row['work']}: {pairs}"


class Clock:
    """Time that passes only when someone works."""

    now = 0.0

    def __call__(self):
        return self.now

    def side(self, seconds, accuracy):
        def work(images):
            self.now += seconds * len(images)
            return {"accuracy": accuracy}

        return work


def test_a_peer_that_takes_four_times_as_long_has_ratio_four():
    clock = Clock()
    images = ImageSet(torch.zeros(10, 3, 8, 8, dtype=torch.uint8), torch.zeros(10).long(), ("a",), "none")
    work = Work("stub", "stub", (3, 5), images, clock.side(0.5, 40.0), clock.side(2.0, 60.0), warm=2)
    row = measure(work, gpu=False, clock=clock)
    assert (row["ours_s"], row["peer_s"], row["ratio"], row["target"]) == (5.0, 20.0, 4.0, 3)
    assert "-20.0 points, or 2 of 10 images" in row["stated"]


def test_equal_accuracies_need_no_statement():
    assert compared({"accuracy": 40.0}, {"accuracy": 40.2}, 1000) == ""


def test_an_absent_checkout_tells_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    with pytest.raises(peers.Absent, match="git clone https://github.com/fra31/auto-attack"):
        peers.checkout("auto-attack", "autoattack")


@pytest.mark.parametrize(
    "name", ["PGD-10, same steps", "PGD-10 training", "distillation", "training step", "dependence"]
)
def test_our_side_of_a_work_runs_as_the_library_is_now(name):
    hardware, vgg = choose(HardwareSettings(device="cpu")), VGG16(width=1 / 16)
    pixels = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageSet(pixels, torch.arange(20) % 10, tuple("0123456789"), "noise")
    network = build(vgg, 10, seed=0).eval()
    bench = Bench(network, network, images, images, hardware, vgg)
    chosen = [work for work in works(bench) if work.name.startswith(name)]
    assert chosen and all(torch.tensor([*work.ours(images).values()]).isfinite().all() for work in chosen)
