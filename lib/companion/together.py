"""One member of a group trained by several processes, on one machine or several, before its stage runs:

    torchrun --standalone --nproc-per-node 4 -m companion together kim/wrn28-10 adversarial

The stage `networks@kim/wrn28-10`, which `make reproduce` runs, finds it trained and goes on with the attacks. It is for
networks that take days: the members of a group already run side by side, one per GPU or core. The machines share data/.
"""

import argparse

from companion import params, records, trained
from robust_features import hardware
from robust_features.settings import UserError, describe, nearest
from robust_features.training import processes, train


def main() -> None:
    """Train one member as one of the processes that torchrun started."""
    parser = argparse.ArgumentParser(prog="python -m companion together", description=__doc__.partition("\n")[0])
    parser.add_argument("group", help="as in params.yaml, such as kim/wrn28-10")
    parser.add_argument("member", help="such as adversarial, or adversarial-seed1 of another seed than the first")
    asked, run = parser.parse_args(), params.load()
    for name, known in (
        (asked.group, run.networks),
        (asked.member, getattr(run.networks.get(asked.group), "trainings", {})),
    ):
        if name not in known:
            raise UserError(f"no '{name}'{nearest(name, known)}; there are {', '.join(known)}")
    model = run.networks[asked.group].trainings[asked.member]
    learnt = trained.splits(model)
    place = records.interrupted("training", describe(model), trained.tensors(learnt))
    with processes.joined() as found:
        place.mkdir(parents=True, exist_ok=True)
        report = print if not found.rank else lambda line: None
        train(
            learnt,
            model,
            hardware=hardware.choose(run.hardware),
            resume=place / "state.pt",
            processes=found,
            report=report,
        )
