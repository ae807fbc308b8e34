"""README's section Adding, tried on a copy of the project: one of each kind is added, and shows."""

import json
import shutil
from dataclasses import replace

import nbformat
import pytest
import torch
from dvc.repo import Repo
from sample_report import write_notebook

from companion import params, paths
from companion.report import contents, index
from robust_features.attacks import linf
from robust_features.networks import build

MINE = {
    "  svhn: {kind: svhn, validation: 1000}\n": (
        "  mine: {kind: image-folder, path: pictures, size: 32, validation: 2}\n"
    ),
    "  svhn: {linf: 0.03}\n": "  mine: {linf: 8/255}\n",
    "    bim: {kind: pgd, step_size: 1/255": "    long: {kind: pgd, step: 0.25, steps: 12}\n",
    "  kim/svhn-vgg16: {like": "  kim/mine-vgg16: {like: kim/vgg16, base: {dataset: mine}}\n",
}


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The project's own files in a folder where they may be edited."""
    for name in ("params.yaml", "claims.yaml", "published.yaml", "dvc.yaml"):
        shutil.copy(paths.ROOT / name, tmp_path)
    shutil.copytree(paths.NOTEBOOKS, tmp_path / "notebooks")
    for name in ("REPORTS", "DATA", "NOTEBOOKS"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    for name in ("PARAMS", "RUN", "CLAIMS", "PUBLISHED"):
        monkeypatch.setattr(paths, name, tmp_path / f"{name.lower()}.yaml")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return tmp_path


def insert(path, before, text):
    """Put `text` before the first place that begins with `before`."""
    content = path.read_text("utf-8")
    assert before in content, "the edit must apply"
    path.write_text(content.replace(before, text + before, 1), "utf-8")


def test_a_dataset_a_group_and_an_attack_of_ones_own_take_an_entry_each_and_are_listed(copy):
    for place in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (copy / "pictures" / place).mkdir(parents=True)
        for number in range(50):
            (copy / "pictures" / place / f"{number}.png").touch()
    for before, text in MINE.items():
        insert(copy / "params.yaml", before, text)
    params.make()
    run = params.load()
    attack, group = run.attack("kim/mine-vgg16/adversarial", "long"), run.networks["kim/mine-vgg16"]
    assert group.reads == "datasets/mine" and attack.epsilon == 8 / 255 and attack.steps == 12
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network = build(replace(group.members["adversarial"].network, width=1 / 16), 10, seed=0).eval()
    moved = linf(attack(network, images, torch.tensor([0, 1])) - images)
    assert 0 < moved.min() and moved.max() <= attack.epsilon + 1e-6
    html = index.scale_index(contents.load_run()).read_text("utf-8")
    assert "Networks: kim/mine-vgg16" in html or "kim/mine-vgg16 (not made)" in html
    assert "mine (not made)" in html
    code = "".join((copy / "notebooks/15-kim-4-attack.ipynb").read_text("utf-8"))
    assert "for name in attacks if name not in" in code, "Kim et al.'s Table 3 shows every attack on the group"


def test_a_claim_takes_an_entry_and_is_judged_on_the_contents(copy):
    claim = (
        "mine:\n  paper: ours, on Kim et al. 2021\n  place: mine\n  artefact: kim-table-1\n  claim: R is above five\n"
    )
    insert(
        copy / "claims.yaml", "kim-robust-features-hold:", f"{claim}  rule: {{above: 5, where: {{features: [R]}}}}\n"
    )
    params.make()
    table = copy / "reports/quick/11-kim-3.1-features-under-attack/tables/kim-table-1.csv"
    table.parent.mkdir(parents=True)
    table.write_text("dataset,network,example,features,paper,ours,low,high\ndigits,VGG-16,pgd,R,,9,8,10\n")
    html = index.scale_index(contents.load_run()).read_text("utf-8")
    row = next(row for row in html.split("<tr>") if "R is above five" in row)
    assert '<span class="chip holds">' in row


def test_a_section_takes_a_notebook_and_its_two_lines_in_dvc_yaml(copy):
    companion = {"paper": "Across the papers", "section": "Mine", "artefacts": {"mine-table": "A table of mine"}}
    write_notebook(copy, "71-mine", ["# What I found", "count = 1"], companion=companion)
    insert(copy / "dvc.yaml", "      - 70-your-own-network\n", "      - 71-mine\n")
    place = "reports/${run.scale}/70-your-own-network\n"
    insert(copy / "dvc.yaml", f"      - {place}    outs", "      - reports/${run.scale}/71-mine\n")
    params.make()
    Repo.init(copy, no_scm=True).close()
    with Repo(copy) as repo:
        stages = {stage.name: stage for stage in repo.index.stages}
        assert "run 71-mine" in stages["ours@71-mine"].cmd
        assert stages["ours@71-mine"] in repo.index.graph.successors(stages["index"])
    html = index.scale_index(contents.load_run()).read_text("utf-8")
    assert "What I found (not made)" in html and "A table of mine" in html
    assert json.loads(params.split(copy / "out").joinpath("sections/71-mine.json").read_text()) == {}
    nbformat.validate(nbformat.read(copy / "notebooks/71-mine.ipynb", as_version=4))
