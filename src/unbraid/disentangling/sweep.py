"""The optimisation loop: sweeps with momentum for runs side by side, a race between them, an L-BFGS tail.

The state can be saved after any sweep and taken up again to the same result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from unbraid.disentangling.environments import Engine, State
from unbraid.disentangling.result import Status
from unbraid.disentangling.tail import Tail, advance, begin

PATIENCE = 3  # sweeps in a row that must gain less than the tolerance
LARGEST_MOMENTUM = 0.97
RUNGS = (3, 6, 12, 24, 48)  # sweeps after which the worse half of the runs is given up
SAME = 1e-6  # overlaps that differ by less belong to the same optimum
TAIL_AT = 1e-6  # a gain of a sweep below which L-BFGS takes over

Callback = Callable[[int, float], "bool | None"]


@dataclass
class Progress:
    """How one run is doing.

    Attributes:
        age: sweeps since the momentum was last set to zero.
        quiet: sweeps in a row that gained less than the tolerance.
        slow: sweeps in a row that gained less than ``TAIL_AT``.
        history: overlap after each sweep, never decreasing.
        status: "running", "given up" (in the race), or how it ended.
        tail: the memory of L-BFGS, once it has taken over.
    """

    age: int = 1
    quiet: int = 0
    slow: int = 0
    history: list[float] = field(default_factory=list)
    status: Status | str = "running"
    tail: Tail | None = None


@dataclass
class Runs:
    """Everything that the loop needs to go on from where it is.

    Attributes:
        accepted: the best gates of each run so far.
        current: where the next sweep of each starts; ahead of ``accepted`` by the momentum.
        progress: of each run.
        stopped: whether the callback asked to stop.
    """

    accepted: State
    current: State
    progress: list[Progress]
    stopped: bool = False

    @classmethod
    def starting(cls, state: State) -> Runs:
        """Before the first sweep."""
        return cls(state, state, [Progress() for _ in range(len(state.overlap))])

    @property
    def best(self) -> int:
        """The run of the largest overlap; the first of equals."""
        return int(self.accepted.overlap.argmax())

    @property
    def sweeps(self) -> int:
        """Sweeps done."""
        return max(len(run.history) for run in self.progress)

    def state(self) -> dict[str, Any]:
        """Plain data and tensors for a checkpoint."""
        progress = [{**vars(run), "tail": None if run.tail is None else vars(run.tail)} for run in self.progress]
        return {"accepted": dict(vars(self.accepted)), "current": dict(vars(self.current)), "progress": progress}

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> Runs:
        """The inverse of :meth:`state`; runs that a callback stopped are taken up again."""
        progress = []
        for saved in state["progress"]:
            tail = None if saved["tail"] is None else Tail(**saved["tail"]).to(device)
            run = Progress(**{**saved, "tail": tail})
            if run.status == "stopped":
                run.status = "running"
            progress.append(run)
        return cls(State(**state["accepted"]).to(device), State(**state["current"]).to(device), progress)


def optimize(
    engine: Engine,
    runs: Runs,
    *,
    max_sweeps: int,
    tolerance: float,
    callback: Callback | None = None,
    save: Callable[[Runs], None] | None = None,
) -> Runs:
    """Sweep until every run has ended; the accepted overlaps never decrease.

    After each sweep the gates are extrapolated along their last change and made orthogonal again; where that lowers the
    overlap, the accepted gates come back and the momentum starts anew. Once a sweep gains less than ``TAIL_AT``, steps
    of L-BFGS take over (one counts as a sweep). The worse half of the runs is given up after each of ``RUNGS``
    (successive halving), but never the first, so more restarts cannot end lower than one. Once the first has ended,
    runs that are still behind it are given up too.

    Args:
        engine: computes the sweeps.
        runs: where to start, or to go on.
        max_sweeps: at most so many a run.
        tolerance: a run ends when ``PATIENCE`` sweeps in a row each gain less than this: "converged" if the Riemannian
            gradient is then below ``sqrt(tolerance)``, "stalled" if not.
        callback: called with (sweeps done, best overlap) after each sweep of the runs; False stops.
        save: called after each sweep.
    """
    while True:
        active = [k for k, run in enumerate(runs.progress) if run.status == "running"]
        for k in active:
            if len(runs.progress[k].history) >= max_sweeps:
                runs.progress[k].status = "out_of_sweeps"
        active = [k for k in active if runs.progress[k].status == "running"]
        if not active:
            break
        _sweep(engine, runs, [k for k in active if runs.progress[k].tail is None])
        for k in active:
            if runs.progress[k].tail is not None:
                _step(engine, runs, k)
        for k in active:
            _judge(engine, runs, k, tolerance)
        if runs.sweeps in RUNGS:
            _give_up(runs)
        if runs.progress[0].status != "running":
            _give_up_behind(runs)
        if callback is not None and callback(runs.sweeps, float(runs.accepted.overlap.max())) is False:
            runs.stopped = True
            for run in runs.progress:
                run.status = "stopped" if run.status == "running" else run.status
        if save is not None:
            save(runs)
    if save is not None:
        save(runs)
    return runs


def _sweep(engine: Engine, runs: Runs, chosen: list[int]) -> None:
    """One sweep with momentum of each chosen run."""
    if not chosen:
        return
    everything = len(chosen) == len(runs.progress)  # then nothing is picked out and put back
    before = runs.accepted if everything else runs.accepted.take(chosen)
    swept = engine.sweep(runs.current if everything else runs.current.take(chosen))
    old, new = before.overlap.tolist(), swept.overlap.tolist()
    lost = [k for k in range(len(chosen)) if not new[k] >= old[k]]
    if lost:  # the extrapolation overshot: sweep from the accepted gates, which cannot lose
        for k in lost:
            runs.progress[chosen[k]].age = 1
        swept = swept.put(lost, engine.sweep(before.take(lost)))
        new = swept.overlap.tolist()
        worse = [k for k in lost if not new[k] >= old[k]]  # they can by rounding, once nothing is left to gain
        if worse:
            swept = swept.put(worse, before.take(worse))
    ages = [runs.progress[k].age for k in chosen]
    momentum = torch.tensor([min(LARGEST_MOMENTUM, (age - 1) / (age + 2)) for age in ages], dtype=torch.float64)
    ahead = engine.extrapolate(before, swept, momentum)
    runs.current = ahead if everything else runs.current.put(chosen, ahead)
    runs.accepted = swept if everything else runs.accepted.put(chosen, swept)
    for k in chosen:
        runs.progress[k].age += 1


def _step(engine: Engine, runs: Runs, k: int) -> None:
    """One step of L-BFGS of a run."""
    tail = runs.progress[k].tail
    assert tail is not None
    moved, runs.progress[k].tail = advance(engine, runs.accepted.take([k]), tail)
    runs.accepted = runs.accepted.put([k], moved)


def _judge(engine: Engine, runs: Runs, k: int, tolerance: float) -> None:
    """Note the sweep of a run, and end it or begin its tail if it is time."""
    run = runs.progress[k]
    overlap = float(runs.accepted.overlap[k])
    gain = overlap - run.history[-1] if run.history else float("inf")
    run.history.append(overlap)
    run.quiet = run.quiet + 1 if gain < tolerance else 0
    run.slow = run.slow + 1 if gain < TAIL_AT else 0
    if run.quiet >= PATIENCE:
        if run.tail is None:
            _, run.tail = begin(engine, runs.accepted.take([k]))
        size = float(torch.linalg.vector_norm(run.tail.gradient))
        run.status = "converged" if size <= tolerance**0.5 else "stalled"
        run.tail = None
    elif run.tail is None and run.slow >= PATIENCE:
        state, run.tail = begin(engine, runs.accepted.take([k]))
        run.history[-1] = max(overlap, float(state.overlap[0]))  # its fit of the core may have gained
        state.overlap[0] = run.history[-1]
        runs.accepted = runs.accepted.put([k], state)


def _give_up_behind(runs: Runs) -> None:
    """Give up the runs that are not ahead of the first, which has ended."""
    first = float(runs.accepted.overlap[0])
    for overlap, run in zip(runs.accepted.overlap.tolist(), runs.progress, strict=True):
        if run.status == "running" and overlap <= first:
            run.status = "given up"


def _give_up(runs: Runs) -> None:
    """Of the runs that go on, keep the first and as many of the best others as make half; and always one of those.

    Runs as good as each other to ``SAME`` have found the same place: a worse twin goes too. Whatever is given up,
    a run that is no worse goes on.
    """
    running = [k for k, run in enumerate(runs.progress) if run.status == "running"]
    overlaps = runs.accepted.overlap.tolist()
    ranked = sorted(running, key=lambda k: -overlaps[k])
    half = (len(ranked) + 1) // 2
    others = [k for k in ranked if k != 0]
    kept = {0, *others[: max(1, half - 1 if 0 in ranked else half)]}
    for k in ranked:
        twin = k != 0 and any(j != k and j in kept and 0 <= overlaps[j] - overlaps[k] < SAME for j in running)
        if k not in kept or twin:
            runs.progress[k].status = "given up"
            kept.discard(k)
