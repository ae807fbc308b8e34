"""DVC's graph in parallel.

    python -m companion engine [--paper NAME] [--only STAGE …] [--scheduler ADDRESS] [--slots N]

This process owns DVC: what has changed, the run cache, dvc.lock. Workers of Dask run the commands of stages, one at a
time each. It leaves what `dvc repro` leaves, which does the same one stage after another and stays valid.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
from dvc.stage import PipelineStage
from dvc.stage.cache import RunCacheNotFoundError, _can_hash
from dvc.stage.serialize import to_lockfile
from dvc.utils.serialize import dump_yaml, load_yaml

from companion import paths, worker
from companion.progress import Progress
from companion.report.contents import load_run
from companion.report.surroundings import apart
from companion.warm import serving
from robust_features.files import atomic
from robust_features.settings import UserError, nearest

if TYPE_CHECKING:
    from distributed import Client, Future

ALL = frozenset({"cpu", "gpu"})  # the classes of slots
EVERY = 20  # seconds between two writings of dvc.lock
FULL = 16 * 2**20  # free bytes below which no stage could keep what it makes
ATTEMPTS = 2  # at a stage whose worker dies
LOGS = "logs"
AGAIN = "and run the same command again: what was finished is kept"
PASSES = 1000  # through a network, forward and back, in a second on a CPU core: about what photographs take
RECORDED = "benchmarks/results/stages/*.json"  # runs of whole scales, by machine


@dataclass(frozen=True)
class Slot:
    """Where one stage at a time runs: a worker, the classes of stages that it takes, and what its environment adds."""

    worker: str
    classes: frozenset[str]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Running:
    """A stage that a slot runs: since when, and the checksums of its dependencies then."""

    stage: PipelineStage
    slot: Slot
    since: float
    dependencies: list[Any]


class Engine:
    """One reproduction: stages are settled (nothing to do or restored from the run cache) or run until none is left."""

    def __init__(self, repo: Repo, targets: Sequence[str], report: Progress, *, force: Sequence[str] = ()):
        self.repo, self.report = repo, report
        self.graph = get_active_graph(repo.index.graph)  # from a stage to what it needs
        chosen = collect_stages(repo, targets or ["dvc.yaml"])
        self.forced = {stage for stage in chosen if stage.addressing in force}
        plan = plan_repro(self.graph, chosen)
        self.needs = {stage: {*self.graph.successors(stage)} & {*plan} for stage in plan}
        self.due: list[PipelineStage] = []  # stages that have changed, and all that they need is there
        self.running: dict[Future, Running] = {}
        self.attempts: dict[PipelineStage, int] = {}
        self.failed: dict[str, str] = {}
        self.skipped: list[str] = []
        self.scale, self.durations = _scale(), _durations()
        self.urgency = self._urgency()
        self.lock = _Lock(repo)

    def settle(self) -> None:
        """Check every stage whose needs are met: go on from it, or add it to those that are due."""
        while ready := [stage for stage, needs in self.needs.items() if not needs and not self._known(stage)]:
            for stage in ready:
                with self._failing(stage):
                    if stage in self.forced:
                        self.due.append(stage)
                    elif not stage.changed(upstream=[*self.graph.successors(stage)]):
                        self._over(stage)
                    elif self._made(stage) or self._restored(stage):
                        self._finish(stage, "from the run cache")
                    else:
                        self.due.append(stage)
        self.due.sort(key=lambda stage: -self.urgency[stage])

    def start(self, client: "Client", slots: Sequence[Slot]) -> None:
        """Give the most urgent stages that are due to slots that are free."""
        busy = [running.slot for running in self.running.values()]
        for slot in [slot for slot in slots if slot not in busy]:
            stage = next((stage for stage in self.due if _takes(slot, stage, slots)), None)
            if stage is None:
                continue
            self.due.remove(stage)
            with self._failing(stage):
                stage.remove_outs(ignore_remove=False, force=False)
                before = _dependencies(stage)
                self.attempts[stage] = number = self.attempts.get(stage, 0) + 1
                commands = stage.cmd if isinstance(stage.cmd, list) else stage.cmd.splitlines()
                env = {
                    "DVC_ROOT": self.repo.root_dir,
                    "DVC_STAGE": stage.addressing,
                    "GIT_OPTIONAL_LOCKS": "0",
                    **slot.env,
                }
                future = client.submit(
                    worker.execute,
                    *(stage.addressing, commands, Path(stage.wdir), env, _log(stage)),
                    key=f"{stage.addressing}#{number}",
                    workers=[slot.worker],
                    pure=False,
                )
                self.running[future] = Running(stage, slot, time.time(), before)
                self.report.started(stage.addressing, _log(stage))

    def wait(self, seconds: float) -> None:
        """Wait for the next stage that ends, and record it."""
        from distributed import wait

        if not self.running:
            time.sleep(seconds)  # for a worker to come
        try:
            done = wait([*self.running], timeout=seconds, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            done = ()
        for future in done:
            self._ended(self.running.pop(future), future)
        self.lock.write(after=EVERY)

    def forget_lost(self, slots: Sequence[Slot]) -> None:
        """Restart stages whose workers are gone."""
        for future, ran in [*self.running.items()]:
            if ran.slot in slots or future.done():
                continue
            del self.running[future]
            future.cancel()
            self._lost(ran.stage)

    def _ended(self, ran: Running, future: "Future") -> None:
        from distributed import KilledWorker

        stage, error = ran.stage, future.exception()
        if isinstance(error, KilledWorker):
            self._lost(stage)
        elif error is not None:
            self._fail(stage, f"its worker failed: {error}")
        elif future.result():
            self._fail(stage, f"exit status {future.result()}")
        else:
            with self._failing(stage):
                if _dependencies(stage) != ran.dependencies:
                    return self._fail(stage, "what it depends on was changed while it ran; run `make reproduce` again")
                seconds = time.time() - ran.since
                self.durations[stage.addressing] = {
                    "scale": self.scale,
                    "slot": ran.slot.worker,
                    "start": ran.since,
                    "seconds": round(seconds, 2),
                }
                self._finish(stage, f"{seconds:.1f} s")

    def _lost(self, stage: PipelineStage) -> None:
        if self.attempts[stage] < ATTEMPTS:
            self.report.said(f"{stage.addressing}: its worker died; it begins anew")
            self.due.insert(0, stage)
        else:
            self._fail(stage, f"{ATTEMPTS} workers died of it")

    def _finish(self, stage: PipelineStage, how: str) -> None:
        """Record what a stage made, as DVC's Stage.run does after the command."""
        stage.save(run_cache=all(out.use_cache or out.is_metric or out.is_plot for out in stage.outs))
        stage.commit()
        self.lock.add(stage)
        self._over(stage)
        self.report.finished(stage.addressing, how)

    def _over(self, stage: PipelineStage) -> None:
        del self.needs[stage]
        for needs in self.needs.values():
            needs.discard(stage)
        self.report.dropped(stage.addressing)

    def _made(self, stage: PipelineStage) -> bool:
        """Whether a run with these dependencies made these outputs and was stopped before DVC had copied them.

        Afterwards the stage has the checksums of its last run again, by which DVC judges what has changed."""
        cache, recorded = self.repo.stage_cache, [(each.hash_info, each.meta) for each in stage.deps]
        stage.save_deps()
        entry = cache._load(stage) if _can_hash(stage) else None
        for dependency, (checksum, meta) in zip(stage.deps, recorded, strict=True):
            dependency.hash_info, dependency.meta = checksum, meta
        outs = cache._create_stage(entry, stage.wdir).outs if entry else []
        return bool(outs) and all(out.exists and not out.changed_checksum() for out in outs)

    def _restored(self, stage: PipelineStage) -> bool:
        """Whether the run cache had what a stage makes. Not after a try: new dependencies would meet old outputs."""
        stage.remove_outs(ignore_remove=False, force=False)
        try:
            self.repo.stage_cache.restore(stage)
        except RunCacheNotFoundError:
            return False
        return True

    def _known(self, stage: PipelineStage) -> bool:
        return stage in self.due or any(running.stage is stage for running in self.running.values())

    def _fail(self, stage: PipelineStage, why: str) -> None:
        """Go on without a stage and everything that needs it."""
        lost = nx.ancestors(self.graph, stage) & self.needs.keys()
        self.failed[stage.addressing] = why
        self.skipped += sorted(each.addressing for each in lost)
        for each in {stage} | lost:
            del self.needs[each]
            self.report.dropped(each.addressing)
        self.report.failed(stage.addressing, why, _log(stage))
        if shutil.disk_usage(self.repo.root_dir).free < FULL:
            raise UserError(f"{self.repo.root_dir}: the disk is full; free some space there, {AGAIN}")

    @contextmanager
    def _failing(self, stage: PipelineStage) -> Iterator[None]:
        """An error in one stage, such as a missing output, does not stop the others; a full disk does."""
        try:
            yield
        except UserError:  # of `_fail`
            raise
        except Exception as error:
            self._fail(stage, f"{type(error).__name__}: {error}")

    def _urgency(self) -> dict[PipelineStage, float]:
        """Seconds from a stage's start to the end of the longest chain of stages that need it, as far as is known."""
        known = expected([stage.addressing for stage in self.graph], usual(self.scale, self.durations))
        average = sum(known.values()) / len(known) if known else 1.0
        urgency: dict[PipelineStage, float] = {}
        for stage in nx.topological_sort(self.graph):
            after = max((urgency[each] for each in self.graph.predecessors(stage)), default=0.0)
            urgency[stage] = after + known.get(stage.addressing, average)
        return urgency


class _Lock:
    """dvc.lock, kept in the order of dvc.yaml, so that a run leaves no differences except what changed."""

    def __init__(self, repo: Repo):
        self.path = Path(repo.root_dir) / "dvc.lock"
        self.order = [stage.name for stage in repo.index.stages if isinstance(stage, PipelineStage)]
        self.content: dict[str, Any] = load_yaml(self.path) if self.path.exists() else {"schema": "2.0", "stages": {}}
        self.written, self.changed = time.monotonic(), False

    def add(self, stage: PipelineStage) -> None:
        self.content["stages"] |= to_lockfile(stage)
        self.changed = True

    def write(self, *, after: float = 0.0) -> None:
        """Write what was added if the last write was `after` seconds ago."""
        if not self.changed or time.monotonic() < self.written + after:
            return
        stages = self.content["stages"]
        self.content["stages"] = {name: stages[name] for name in [*self.order, *stages] if name in stages}
        with atomic(self.path) as partial:
            dump_yaml(partial, self.content)
        self.written, self.changed = time.monotonic(), False


def reproduce(
    *, paper: str = "", only: Sequence[str] = (), force: Sequence[str] = (), scheduler: str = "", slots: int = 0
) -> bool:
    """Run what is stale, of all or some stages and what they need (`force`: these anyway); returns whether all is well.

    Raises UserError if another run holds the project, or if a name is unknown."""
    repo = Repo()
    chosen = targets(repo, paper, [*only, *force])
    with ExitStack() as stack:
        try:
            stack.enter_context(repo.lock)
        except LockError:
            raise UserError(f"another run works on this project{_holder(repo)}: wait for it, or stop it") from None
        stack.enter_context(repo.scm_context(quiet=True))
        report = stack.enter_context(Progress(usual(_scale(), _durations())))
        engine = Engine(repo, chosen, report, force=targets(repo, "", force))
        try:
            engine.settle()
            report.planned([stage.addressing for stage in engine.needs])
            if engine.due:
                client, places = stack.enter_context(_workers(scheduler, slots))
                stack.callback(_stop, client)
                while engine.due or engine.running:
                    there = places()
                    engine.forget_lost(there)
                    engine.start(client, there)
                    engine.wait(1.0)
                    engine.settle()
        finally:
            try:
                engine.lock.write()
                _keep(engine.durations)
            except OSError as error:
                raise UserError(
                    f"{repo.root_dir}: cannot be written to ({error.strerror}); mend that, {AGAIN}"
                ) from error
        report.ended(engine.failed, engine.skipped)
        for line in _what_to_open(repo, chosen) if not engine.failed else ():
            report.said(line)
    return not engine.failed


@contextmanager
def _workers(scheduler: str, slots: int) -> Iterator[tuple["Client", Any]]:
    """A client of Dask, and a function that tells the slots: those of a running scheduler, or of this machine."""
    from dask.system import CPU_COUNT
    from distributed import Client, LocalCluster

    if scheduler:
        place = {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
        with Client(**place) as client:
            yield client, lambda: _remote(client)
        return
    gpus = _gpus()
    envs = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus for _ in range(slots or 1)] or [{}] * (slots or CPU_COUNT)
    share = {"OMP_NUM_THREADS": str(max(1, CPU_COUNT // len(envs)))}
    with apart(paths.DATA / "matplotlib"):
        imported_with = {**os.environ, **share}
    threads = {"n_workers": len(envs), "threads_per_worker": 1, "processes": False, "memory_limit": 0}
    here = "127.0.0.1:0"  # it would listen to everyone
    cluster = LocalCluster(**threads, dashboard_address=here, worker_dashboard_address=here, silence_logs="error")
    with serving(imported_with) as warm, cluster, Client(cluster) as client:
        names = sorted(client.scheduler_info(n_workers=-1)["workers"])
        found = [Slot(name, ALL, share | warm | env) for name, env in zip(names, envs, strict=True)]
        yield client, lambda: found


def _remote(client: "Client") -> list[Slot]:
    """One slot per worker; `dask worker --resources gpu=1` says which class of stages it takes, by default all."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return [Slot(name, frozenset(about["resources"]) or ALL) for name, about in workers.items()]


def _takes(slot: Slot, stage: PipelineStage, slots: Sequence[Slot]) -> bool:
    """Whether a slot is of the class a stage asks for in dvc.yaml, `meta: {slot: gpu}`; without such a slot, any is."""
    wanted = (stage.meta or {}).get("slot", "cpu")
    return wanted in slot.classes or not any(wanted in each.classes for each in slots)


def _stop(client: "Client") -> None:
    client.run(worker.stop)


def _dependencies(stage: PipelineStage) -> list[Any]:
    """Checksums of all that a stage depends on, as it is now."""
    stage.save_deps()
    return [dependency.hash_info for dependency in stage.deps]


def _log(stage: PipelineStage) -> Path:
    return Path(stage.repo.root_dir) / LOGS / f"{stage.addressing.replace('/', '-')}.log"


def _gpus() -> list[str]:
    """The indices of the GPUs that this process may use."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [each for each in told.split(",") if each.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    except OSError:
        return []
    return [str(number) for number in range(listed.stdout.count("GPU "))]


def _durations() -> dict[str, dict[str, Any]]:
    """How long each stage took when it last ran, where and when; empty before the first run."""
    try:
        return json.loads((paths.ROOT / LOGS / "durations.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def usual(scale: str, own: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Seconds that stages take at a scale: from a run of one's own, else from one that came with the project."""
    recorded = [json.loads(path.read_text("utf-8"))["stages"] for path in sorted(paths.ROOT.glob(RECORDED))]
    entries = [item for run in [*recorded, own] for item in run.items()]
    return {name: entry["seconds"] for name, entry in entries if entry.get("scale") == scale}


def expected(stages: Iterable[str], known: Mapping[str, float]) -> dict[str, float]:
    """Seconds for stages: where not known, by the counted passes through networks. Only the order matters."""
    heavy = ("networks@", "construct@", "transfer@")
    if not paths.RUN.exists() or all(name in known for name in stages if name.startswith(heavy)):
        return dict(known)
    from companion import params, plan  # import torch, which takes seconds

    return {name: passes / PASSES for name, passes in plan.counts(params.load()).items()} | dict(known)


def _scale() -> str:
    """The scale of run.yaml, whose stages are called as those of others are; empty in a project that has none."""
    return load_run()["scale"] if paths.RUN.exists() else ""


def _keep(durations: Mapping[str, Any]) -> None:
    if durations:
        with atomic(paths.ROOT / LOGS / "durations.json") as partial:
            partial.write_text(json.dumps(durations, indent=1) + "\n", "utf-8")


def _holder(repo: Repo) -> str:
    """The process that holds DVC's lock, if it can be read."""
    try:
        return f" (process {int(Path(repo.lock.lockfile).read_text())})"
    except (OSError, ValueError):
        return ""


def targets(repo: Repo, paper: str, only: Sequence[str] = ()) -> list[str]:
    """The stages of a paper's sections, and those whose names or sections begin with `only`.

    Raises UserError for unknown names."""
    names = [stage.addressing for stage in repo.index.stages if isinstance(stage, PipelineStage)]
    found = [name for name in names if paper and name.startswith(f"{paper}@")]
    if paper and not found:
        known = sorted({name.split("@")[0] for name in names if "@" in name})
        raise UserError(f"{paper}: there is no such paper{nearest(paper, known)}; there are {', '.join(known)}")
    for wanted in only:
        fits = [name for name in names if _begins(name, wanted) or _begins(name.split("@")[-1], wanted)]
        if not fits:
            near = nearest(wanted, [name.split("@")[-1] for name in names])
            raise UserError(f"{wanted}: no stage is called so{near}; `dvc stage list` shows all")
        found += fits
    return found


def _what_to_open(repo: Repo, chosen: Sequence[str]) -> Iterator[str]:
    """The pages of these stages, or the first page of all and the count of verdicts."""
    if not chosen or "index" in chosen:
        if (paths.REPORTS / "index.html").exists():
            from companion import metrics  # imports pandas, which no stage should wait for

            yield metrics.verdicts(_scale())
            yield f"open {paths.REPORTS / 'index.html'}"
        return
    outs = [Path(out.fs_path) for name in chosen for out in repo.stage.collect(name)[0].outs]
    yield from (f"open {page}" for page in (out / "index.html" for out in outs) if page.exists())


def _begins(name: str, wanted: str) -> bool:
    """Whether a name has this beginning; a dash may stand for the dot in a section's number."""
    return name.replace(".", "-").startswith(wanted.replace(".", "-"))


def _interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m companion engine", description=reproduce.__doc__)
    parser.add_argument(
        "--paper", default="", help="the sections of one paper, with all they need: kim, xu, springer, ilyas"
    )
    parser.add_argument("--only", nargs="*", default=[], help="stages or sections, with all they need: 11-kim")
    parser.add_argument("--force", nargs="*", default=[], help="the same, up to date or not")
    parser.add_argument("--scheduler", default="", help="a running Dask scheduler: its address, or its scheduler file")
    parser.add_argument(
        "--slots", type=int, default=0, help="stages at once on a GPU (by default 1), or on this machine (one a core)"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        sys.exit(not reproduce(**vars(options)))
    except KeyboardInterrupt:
        print("stopped; what was finished is kept, and `make reproduce` goes on from there", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
