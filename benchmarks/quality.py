# SPDX-License-Identifier: GPL-3.0-or-later
"""SODA against what a user would pick instead, on the demo's base model and its held-out subjects and styles.

    python dev.py bench quality [--quick] [--stage tune|base|train|merge|ablate|report]...

Every finished run is kept in the cache folder, so that a stopped benchmark goes on where it was. The full one takes
hours on two cores. Writes ``benchmarks/results/quality.json`` (flat rows), tables and plots.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.lib import evaluate, report  # noqa: E402
from benchmarks.lib.bed import Bed  # noqa: E402
from benchmarks.lib.machine import RESULTS, label  # noqa: E402
from benchmarks.lib.methods import METHODS, Method  # noqa: E402
from demo.machine import core_count  # noqa: E402
from demo.model_files import JUDGE  # noqa: E402
from demo.world.tasks import STYLE, SUBJECT, Task  # noqa: E402
from demo.world.vocabulary import REPORTED_STYLES, REPORTED_SUBJECTS, TUNING_STYLES  # noqa: E402
from demo.world_model import checkpoint  # noqa: E402
from dev import cache_root  # noqa: E402
from soda_core.errors import TrainingError  # noqa: E402

Row = dict[str, Any]
MEASURES = 2  #: raised when a row says something else than before, so that kept ones are not mixed in
RATES = (3e-3, 1e-2, 3e-2)  #: every method's tries; at 1e-3 most learn nothing in so few steps
#: what is varied in the ablations, on a subject that no rate was chosen on
ABLATED, ABLATION_SEED = "SODA-SVD-large", 1
ABLATED_ON = {"subject": Task("subject", "black cat"), "style": STYLE}
TUNED_ON = {"subject": SUBJECT, "style": STYLE}


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    methods: tuple[str, ...]
    subjects: tuple[str, ...]
    styles: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int = 60
    batch: int = 1
    prompts: int = 6
    sampling_steps: int = 8
    strengths: tuple[tuple[float, float], ...] = ((1.0, 1.0), (0.7, 0.7), (1.0, 0.7), (0.7, 1.0))

    @property
    def training(self) -> dict[str, Any]:
        # not dco: what this small model gains is so large that dco's weight falls to nothing within a few steps
        return {"steps": self.steps, "batch_size": self.batch, "loss": "mse"}


FULL = Plan(tuple(METHODS), tuple(REPORTED_SUBJECTS), tuple(REPORTED_STYLES), (0, 1, 2))
QUICK = Plan(
    ("SODA-SVD-large", "LoRA-large"), (ABLATED_ON["subject"].name,), TUNING_STYLES, (0,), steps=30,
    strengths=((1.0, 1.0),),
)  # fmt: skip


class Results:
    """Rows by what they measure, kept in files that only grow, one for each process that writes."""

    def __init__(self, folder: Path, writer: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path = folder, folder / f"rows-{writer}.jsonl"
        self.rows: dict[str, list[Row]] = {}
        for path in sorted(folder.glob("rows-*.jsonl")):
            text = path.read_text("utf-8")
            whole = text[: text.rfind("\n") + 1]  # a process was stopped within a line, or is writing one
            if path == self.path and whole != text:
                path.write_text(whole, "utf-8")
            for line in whole.splitlines():
                entry = json.loads(line)
                self.rows[entry["key"]] = entry["rows"]

    def add(self, key: str, rows: list[Row]) -> None:
        rows = [{**row, "machine": label()} for row in rows]
        self.rows[key] = rows
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "rows": rows}) + "\n")

    def deltas(self, key: str) -> Path:
        return self.folder / "deltas" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


class Bench:
    """Everything that is measured.

    Args:
        kind: the tasks that this process trains, "subject" or "style"; empty for what comes after.
    """

    def __init__(self, plan: Plan, work: Path, folder: Path, kind: str = "") -> None:
        base = checkpoint(cache_root())
        # another model, judge or training is another benchmark
        of = (MEASURES, base.stem, hashlib.sha256(JUDGE.read_bytes()).hexdigest(), plan.training, plan.prompts)
        self.plan, self.folder, self.kind = plan, folder, kind
        self.results = Results(
            work / hashlib.sha256(repr((of, plan.sampling_steps)).encode()).hexdigest()[:12], kind or "merge"
        )
        self.bed = Bed(base)
        self._references: dict[tuple[str, str], Any] = {}
        self._base: dict[int, Any] = {}

    # --------------------------------------------------------------------------------------------------- one run

    def run(self, method: Method, task: Task, seed: int, lr: float, note: str = "", prior: int = 0) -> list[Row]:
        """Train once and measure; does nothing if that is done already. Rows: the task's, and but for tuning drift."""
        key = run_key(method, task, seed, lr, note)
        if key in self.results.rows:
            return self.results.rows[key]
        from benchmarks.lib.training import train_method

        started = time.monotonic()
        data = self.bed.training_data(task, prior)
        common: Row = {
            "method": method.name, "budget": method.budget, "task": task.kind, task.kind: task.name, "seed": seed,
            "lr": lr, "steps": self.plan.steps, "note": note,
        }  # fmt: skip
        try:
            trained = train_method(self.bed.patcher, data, method, lr, **self.plan.training, seed=seed)
            if not all(bool(delta.isfinite().all()) for delta in trained.deltas.values()):
                raise ValueError("the weights are not finite")
        except (TrainingError, ValueError, torch.linalg.LinAlgError) as error:
            rows = [{**common, "diverged": True}]
            self.results.add(key, rows)
            say(f"{key}: diverged, {error}")
            return rows
        common |= {
            "params": trained.params, "stored": trained.stored, "seconds_per_step": trained.seconds_per_step,
        }  # fmt: skip
        rows = [{**common, **self.measure(task, trained.deltas, seed)}]
        if note != "tuning":
            rows.append({**common, "task": "drift", "after": task.kind, **self.drift(trained.deltas, seed)})
        if not note:
            path = self.results.deltas(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({n: d.half().contiguous() for n, d in trained.deltas.items()}, path)
            if trained.adapter is not None:
                trained.adapter.save(adapter_path(path))
        self.results.add(key, rows)
        say(f"{key}: {_short(rows[0])}, {time.monotonic() - started:.0f} s")
        return rows

    def judged(self, deltas: Mapping[str, Tensor] | None, prompts: Sequence[evaluate.Prompt], seed: int) -> Any:
        return evaluate.judged(self.bed, deltas, prompts, seed, self.plan.sampling_steps)

    def measure(self, task: Task, deltas: Mapping[str, Tensor] | None, seed: int) -> Row:
        """``gain`` of a subject: how much more like it than without an adapter, from the same noise."""
        ask = evaluate.subject_prompts if task.kind == "subject" else evaluate.style_prompts
        prompts = ask(task, self.plan.prompts)
        verdict, _ = self.judged(deltas, prompts, seed)
        if task.kind == "subject":
            metrics: Row = evaluate.subject_metrics(verdict, prompts, self.references(task))
            if deltas is not None:
                metrics["gain"] = metrics["similarity"] - self.base_row(task, seed)["similarity"]
            return metrics
        return evaluate.style_metrics(verdict, prompts)

    def drift(self, deltas: Mapping[str, Tensor], seed: int) -> Row:
        prompts = evaluate.plain_prompts(self.plan.prompts // 2)
        if seed not in self._base:
            self._base[seed] = self.judged(None, prompts, seed)
        return evaluate.drift_metrics(*self.judged(deltas, prompts, seed), *self._base[seed], prompts)

    def references(self, task: Task, style: str = "flat") -> Any:
        key = task.name, style
        if key not in self._references:
            self._references[key] = self.bed.references(task, style)
        return self._references[key]

    # ---------------------------------------------------------------------------------------------------- stages

    def methods(self) -> Iterator[Method]:
        return (METHODS[key] for key in self.plan.methods)

    def base(self) -> None:
        """What the model without any adapter does with the same prompts and noise."""
        for task in self.tasks():
            for seed in self.plan.seeds:
                self.base_row(task, seed)

    def base_row(self, task: Task, seed: int) -> Row:
        key = f"base/{task.kind}/{task.name}/seed{seed}"
        if key not in self.results.rows:
            reported = task.name in (*self.plan.subjects, *self.plan.styles)
            row: Row = {
                "method": "base", "budget": "none", "task": task.kind, task.kind: task.name, "seed": seed,
                "note": "base" if reported else "base, not reported",
            }  # fmt: skip
            self.results.add(key, [{**row, **self.measure(task, None, seed)}])
        return self.results.rows[key][0]

    def tasks(self) -> list[Task]:
        """This process's share of what is reported."""
        names = self.plan.subjects if self.kind == "subject" else self.plan.styles
        return [Task(self.kind, name) for name in names]

    def tune(self) -> None:
        """Every method's learning rate, by as many tries on a subject, and on a style, that are never reported."""
        for lr in RATES:
            for method in self.methods():
                self.try_rate(method, self.kind, lr)

    def try_rate(self, method: Method, kind: str, lr: float) -> float:
        """The score of a learning rate for subjects or for styles."""
        return score(self.run(method, TUNED_ON[kind], 0, lr, note="tuning")[0])

    def best_rate(self, method: Method, kind: str) -> float:
        return max(RATES, key=lambda lr: self.try_rate(method, kind, lr))

    def train(self) -> None:
        for slow in (False, True):
            for seed in self.plan.seeds:
                for task in self.tasks():
                    for method in self.methods():
                        if method.slow == slow:
                            self.run(method, task, seed, self.best_rate(method, self.kind))

    def ablate(self) -> None:
        """One thing changed at a time, all at the learning rate of the whole."""
        if len(self.plan.methods) < len(METHODS):
            return
        whole = METHODS[ABLATED]
        lr = self.best_rate(whole, self.kind)
        for name, (changes, options) in ABLATIONS.items():
            method = replace(whole, name=name, settings={**(whole.settings or {}), **changes}, **options)
            prior = 8 if "prior" in name else 0
            self.run(method, ABLATED_ON[self.kind], ABLATION_SEED, lr, note="ablation", prior=prior)

    def merge(self) -> None:
        """Each subject with one style a seed: changes of the weights added up, and for ours the geodesic merge.

        Other strengths than the first with seed 0 only.
        """
        for seed in self.plan.seeds:
            for i, name in enumerate(self.plan.subjects):
                subject = Task("subject", name)
                style = Task("style", self.plan.styles[(i + seed) % len(self.plan.styles)])
                for method in self.methods():
                    for how in ("sum", "geodesic") if method.settings is not None else ("sum",):
                        for strengths in self.plan.strengths[: None if seed == 0 else 1]:
                            self.merge_once(method, subject, style, seed, how, strengths)

    def merge_once(
        self, method: Method, subject: Task, style: Task, seed: int, how: str, strengths: tuple[float, float]
    ) -> None:
        rates = [self.best_rate(method, task.kind) for task in (subject, style)]
        runs = [run_key(method, task, seed, lr) for task, lr in zip((subject, style), rates, strict=True)]
        key = f"merge/{runs[0]}{runs[1]}/{how}/{strengths}"
        if key in self.results.rows or any(run not in self.results.rows for run in runs):
            return
        row: Row = {
            "method": method.name, "budget": method.budget, "task": "merge", "subject": subject.name,
            "style": style.name, "seed": seed, "lr": rates, "steps": self.plan.steps, "merge_method": how,
            "strengths": list(strengths), "note": "",
        }  # fmt: skip
        if any(self.results.rows[run][0].get("diverged") for run in runs):
            self.results.add(key, [{**row, "diverged": True}])
            return
        prompts = evaluate.merge_prompts(subject, style, self.plan.prompts // 2)
        deltas = self.merged([self.results.deltas(run) for run in runs], how, strengths)
        verdict, _ = self.judged(deltas, prompts, seed)
        row |= evaluate.merge_metrics(verdict, prompts, self.references(subject), self.references(subject, style.name))
        self.results.add(key, [row])
        say(f"{key}: {_short(row)}")

    def report(self) -> None:
        """Everything measured so far as JSON, tables and plots."""
        report.write([r for rows in self.results.rows.values() for r in rows], score, self.folder, asdict(self.plan))
        say(f"written to {self.folder}")

    def merged(self, paths: list[Path], how: str, strengths: tuple[float, float]) -> dict[str, Tensor]:
        if how == "geodesic":
            from soda_core.adapter import SodaAdapter
            from soda_core.merge import merge

            subject, style = (SodaAdapter.load(adapter_path(path)) for path in paths)
            return self.bed.deltas_of(merge(subject, style, *strengths, method="geodesic"))
        parts = [load_file(path) for path in paths]
        names = parts[0].keys() | parts[1].keys()
        pairs = list(zip(strengths, parts, strict=True))
        return {n: torch.stack([s * part[n].float() for s, part in pairs if n in part]).sum(0) for n in names}


def run_key(method: Method, task: Task, seed: int, lr: float, note: str = "") -> str:
    exactly = hashlib.sha256(method.description().encode()).hexdigest()[:8]
    return f"{method.key}/{exactly}/{task.kind}/{task.name}/seed{seed}/lr{lr:g}/{note}"


def adapter_path(deltas: Path) -> Path:
    """Where our own methods keep the adapter that made the changes."""
    return deltas.with_suffix(".soda.safetensors")


def score(row: Row) -> float:
    """What learning rates are chosen by: the product of learning the thing and keeping the rest."""
    if row.get("diverged"):
        return 0.0
    if row["task"] == "subject":
        return max(0.0, row["gain"]) * row["prompt_accuracy"]
    return row["style_probability"] * row["class_accuracy"]


def _short(row: Row) -> str:
    names = ("similarity", "prompt_accuracy", "style_probability", "class_accuracy", "both")
    return ", ".join(f"{name.replace('_', ' ')} {row[name]:.2f}" for name in names if name in row)


def say(text: str) -> None:
    print(text, flush=True)


TRAININGS = ("tune", "base", "train", "ablate")  #: what is done for subjects and for styles on their own
STAGES = (*TRAININGS, "merge", "report")
#: settings and options that differ from SODA-SVD at the large budget
ABLATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as it is": ({}, {}),
    **{f"{n} factor{'s' * (n > 1)}": ({"factor_preset": "auto", "factor_count": n}, {}) for n in (1, 2, 3, 4)},
    **{f"shift on {n} knots": ({"shift_knots": n}, {}) for n in (64, 16, 8)},
    "retraction cayley": ({"retraction": "cayley"}, {}),
    "retraction exp": ({"retraction": "exp"}, {}),
    "Cayley-Adam": ({}, {"cayley": True}),
    "loss min-snr": ({"loss": "min-snr"}, {}),
    **{f"loss dco, beta {beta}": ({"loss": "dco", "dco_beta": float(beta)}, {}) for beta in (1000, 30)},
    "loss mse + prior": ({}, {}),
    "all linear and convolution layers": ({"layers": "all linear + conv", "factor_preset": "large"}, {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few methods, one subject, one style: ten minutes")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this; may be given several times")
    parser.add_argument("--task", choices=tuple(TUNED_ON), help="trainings of these alone; without, both side by side")
    parser.add_argument("--work", type=Path, help="where runs are kept, so that a stopped benchmark goes on")
    parser.add_argument("--out", type=Path, help="where JSON, tables and plots go; benchmarks/results for a full run")
    args = parser.parse_args()
    plan, name = (QUICK, "quality-quick") if args.quick else (FULL, "quality")
    work = args.work or cache_root() / f"bench-{name}"
    stages = args.stage or STAGES
    trainings = [stage for stage in stages if stage in TRAININGS]
    if args.task:
        torch.set_num_threads(max(1, core_count() // 2))
        bench = Bench(plan, work, args.out or work, args.task)
        for stage in trainings:
            getattr(bench, stage)()
        return
    if trainings:
        side_by_side()
    torch.set_num_threads(core_count())
    bench = Bench(plan, work, args.out or (work / "report" if args.quick else RESULTS))
    for stage in stages:
        if stage not in TRAININGS:
            getattr(bench, stage)()


def side_by_side() -> None:
    """Subjects and styles in a process each, on half the cores: steps as small as these gain little from threads."""
    runs = [subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--task", kind]) for kind in TUNED_ON]
    try:
        codes = [run.wait() for run in runs]
        if any(codes):
            raise SystemExit("a training process failed; started again, the benchmark goes on where it was")
    finally:
        for run in runs:
            run.terminate()


if __name__ == "__main__":
    main()
