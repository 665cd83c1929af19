"""A user's proof that this machine trains and evaluates right: every engine exact, trainings repeat, stop and go on.

Exactness is measured in float64 on small models, all else at published sizes. Images are noise and glyphs: nothing is
downloaded.
"""

import hashlib
import statistics
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from anml.config.evaluation import EvalConfig
from anml.config.smoke_test import smoke_test
from anml.config.training import TrainConfig
from anml.data.class_images import ClassImages
from anml.data.episodes import draw_episode
from anml.errors import ConfigError
from anml.evaluate.learner import ReferenceLearner
from anml.evaluate.prepared_run import RunPreparer, Shape
from anml.evaluate.sweep import choose_engine
from anml.experiment import Experiment
from anml.machine import clock, describe_machine, determinism, peak_memory
from anml.meta import ENGINES, make_engine
from anml.meta.engine import ReferenceEngine, gradient_errors
from anml.meta.outer_step import MetaStep, OuterStep
from anml.meta.static_update import StaticUpdate, UpdateGraph
from anml.models import build_model
from anml.models.meta_model import MetaModel, select_names
from anml.train.loop import Training
from anml.train.run import RunSpec, step_folder

# As published; OML with the strides for 28 pixels. A smoke test makes these widths small.
_MODELS: dict[str, dict[str, Any]] = {
    "anml": {"model_args": {"rln_chs": 256, "nm_chs": 112}, "inner_params": ("rln", "fc")},
    "sanml": {"model_args": {"rln_chs": 256}},
    "oml": {
        "model_args": {"num_filters": 256, "strides": [2, 1, 2, 1, 1], "hidden": 1024},
        "inner_params": ("pn",),
        "inner_lr": 0.03,
    },
}
# Relative: of a gradient's norm, of logits, and of losses after updates by Adam, which scales rounding up.
_EXACT, _SAME_LOSS = 1e-9, 1e-6
_EVALUATED = Shape(classes=8, train_examples=5, test_examples=2)


class Finding(NamedTuple):
    """What a check has found. ok: None where there was nothing to judge. numbers: what the words say, for programs."""

    ok: bool | None
    words: str
    numbers: dict[str, float] = {}


class Row(NamedTuple):
    """A line of the table."""

    check: str
    finding: Finding
    seconds: float

    def __str__(self) -> str:
        status = {True: "pass", False: "FAIL", None: "-"}[self.finding.ok]
        return f"{status:5} {self.check:42} {self.finding.words}"

    def to_json(self) -> dict[str, Any]:
        return {"check": self.check, "seconds": round(self.seconds, 3), **self.finding._asdict()}


Check = Callable[[], Finding]


def run_selftest(device: torch.device, folder: Path, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Do all checks, a line each to `say`, and return them with the facts of the machine, to be written as JSON.

    folder: empty, for what trainings write. quick: small sizes throughout, a rehearsal of seconds.
    """
    machine = describe_machine(device) | {"cudnn": str(torch.backends.cudnn.version())}
    say(f"selftest on {machine['device']}, torch {machine['torch']}{determinism(device)}")
    begun = clock(device)
    rows: list[Row] = []
    for name, check in _checks(device, folder, quick):
        started = clock(device)
        rows.append(Row(name, _guarded(check), clock(device) - started))
        say(str(rows[-1]))
    failed = [row.check for row in rows if row.finding.ok is False]
    seconds = clock(device) - begun
    say(f"{len(failed)} of {len(rows)} checks failed" if failed else f"all checks passed in {seconds:.0f} s")
    lines = [row.to_json() for row in rows]
    return {"machine": machine, "quick": quick, "seconds": round(seconds, 1), "failed": failed, "checks": lines}


def _guarded(check: Check) -> Finding:
    try:
        return check()
    except ConfigError as error:  # An engine that cannot run here, and says why.
        reason = str(error).partition(" this: ")[2] or str(error)
        return Finding(None, f"left out: {reason.removesuffix('. Use engine: auto.')}")
    except Exception as error:  # A compiler, a driver or a kernel may raise anything; the other checks go on.
        lines = str(error).splitlines() or ["no message"]
        return Finding(False, f"{type(error).__name__}: {lines[0]}")


def _checks(device: torch.device, folder: Path, quick: bool) -> Iterator[tuple[str, Check]]:
    for kind in _MODELS:
        for engine in [name for name in ENGINES if name != "reference"]:
            yield f"{kind}, engine {engine}: gradients", partial(_gradients_are_exact, kind, engine, device)
        yield f"{kind}, engine graph: updates", partial(_replays_are_exact, kind, device)
    for engine in get_args(EvalConfig.model_fields["engine"].annotation):
        for part in ("head", "all") if engine not in ("auto", "reference") else ():
            yield f"evaluation, engine {engine}: {part} learns", partial(_learning_is_exact, engine, part, device)
    trainer = _Trainer(device, folder, quick)
    yield "anml trained twice", partial(trainer.repeats, "anml")
    yield "anml stopped and resumed", partial(trainer.resumes, "anml")
    yield "two anml trained together", partial(trainer.together, "anml")
    for kind in _MODELS:
        yield f"{kind}: speed against the reference", partial(trainer.is_fast, kind)
    yield "memory", lambda: Finding(None, peak_memory(device))


# Exactness.


def _config(kind: str, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {"dataset": "glyphs", "model": kind}
    return TrainConfig(**values | _MODELS[kind] | changes)


def _small(kind: str, **changes: Any) -> TrainConfig:
    return smoke_test(_config(kind)).model_copy(update={"num_batches": 5, "max_steps": None, "epochs": 10} | changes)


def _noise(device: torch.device) -> ClassImages:
    """Noise has no near-ties, at which rounding would choose the gradient."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (10, 20, 1, 28, 28), dtype=torch.uint8, generator=generator)
    return ClassImages(images.to(device), "noise")


def _double_model(config: TrainConfig, device: torch.device) -> MetaModel:
    """Return a model in float64, its norms away from one and zero: else half of the formulas would not be tested."""
    model = build_model(config.model, config.model_args, config.image_shape, seed=1).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model.to(device)


def _gradients_are_exact(kind: str, engine: str, device: torch.device) -> Finding:
    config = _small(kind, engine=engine)
    model = _double_model(config, device)
    names = select_names(model, config.inner_params)
    tested, _ = make_engine(config, model, names)
    episode = draw_episode(_noise(device), config, 1, 0, torch.float64)
    reference = ReferenceEngine(model, names, config.inner)
    errors = gradient_errors(tested.run(episode), reference.run(episode))
    return _error(max(errors.values()), _EXACT, tested.note)


def _replays_are_exact(kind: str, device: torch.device) -> Finding:
    """Compare updates that a graph replays with those of the ordinary path."""
    config, data = _small(kind, engine="graph"), _noise(device)
    plain, captured = (_double_model(config, device) for _ in range(2))
    names = select_names(plain, config.inner_params)
    expected = MetaStep(config, plain, make_engine(config, plain, names)[0], config.seed)
    outer = OuterStep(config, captured, config.seed)
    outer.keep_lr_on_device()
    graph = UpdateGraph([StaticUpdate(config, outer, make_engine(config, captured, names)[0].run, data)])
    error = 0.0
    for index in range(config.epochs):
        wanted = expected.update(draw_episode(data, config, config.seed, index, torch.float64), index).loss
        error = max(error, float((graph.step(index)[0].loss - wanted).abs() / wanted))
    return _error(error, -1.0 if graph.failure else _SAME_LOSS, graph.failure)


def _learning_is_exact(engine: str, part: str, device: torch.device) -> Finding:
    training = _small("anml")
    values: dict[str, Any] = {name: (size,) for name, size in _EVALUATED._asdict().items()}
    config = EvalConfig(**values | {"engine": engine, "opt_params": (part,), "runs": 1})
    preparer = RunPreparer(_double_model(training, device), config, _noise(device), torch.float64)
    prepared = preparer.make(_EVALUATED, [0])
    learners = [choose_engine(preparer, 1, 1).make(prepared, config.lr), ReferenceLearner(prepared[0], config.lr[0])]
    logits = []
    for learner in learners:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "steps run without a CUDA graph")
            # As an evaluation learns, class after class: steps are captured once a few have run.
            for first in range(0, _EVALUATED.classes * _EVALUATED.train_examples, _EVALUATED.train_examples):
                learner.learn_each(first, first + _EVALUATED.train_examples)
        [(learned, _)] = learner.logits()
        logits.append(learned)
    return _error(float((logits[0] - logits[1]).norm() / logits[1].norm()), _SAME_LOSS)


def _error(error: float, most: float, note: str = "") -> Finding:
    words = ", ".join(filter(None, (f"off by {error:.1e}", note)))
    return Finding(error <= most, words, {"error": error})


# Trainings.


class _Trainer:
    """Trains as a job does: engine `auto`, checkpoints in folders below `folder`."""

    def __init__(self, device: torch.device, folder: Path, quick: bool) -> None:
        self.device, self.folder = device, folder
        # Past the warm-up of a graph, and far enough on for a resumed one to capture its own.
        self.steps, self.make_config = (10, _small) if quick else (12, _config)
        self.timed = 3 if quick else 30

    def repeats(self, kind: str) -> Finding:
        return _same(self._train(kind, "once", 1), self._train(kind, "twice", 1))

    def resumes(self, kind: str) -> Finding:
        self._train(kind, "stopped", 1, until=self.steps // 2)
        return _same(self._train(kind, "once", 1), self._train(kind, "stopped", 1))

    def together(self, kind: str) -> Finding:
        config = self._training_config(kind).model_copy(update={"seeds": (1, 2), "train_together": True})
        each = [config.for_training(training) for training in config.trainings]
        specs = [self._spec(one, f"together-{one.seed}") for one in each]
        Training(specs, self.device).run(self.steps, lambda: False, lambda done: None)
        alone = [self._train(kind, "once", 1), self._train(kind, "second", 2)]
        return _same("".join(alone), "".join(_digest(spec, self.steps) for spec in specs))

    def is_fast(self, kind: str) -> Finding:
        """Compare updates per second: medians, the reference's of few updates."""
        slow, _ = self._rate(kind, "reference", 1, 3)
        fast, note = self._rate(kind, "auto", 5, self.timed)
        words = f"{fast:.3g} updates/s, reference {slow:.3g}: {fast / slow:.1f} times as fast ({note})"
        numbers = {"updates_per_second": fast, "reference_updates_per_second": slow}
        if self.device.type == "cuda":
            numbers["peak_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
            words += f", peak {numbers['peak_gb']:.2f} GB"
        return Finding(fast > slow, words, numbers)

    def _rate(self, kind: str, engine: str, warm_ups: int, count: int) -> tuple[float, str]:
        config = self._training_config(kind).model_copy(update={"engine": engine, "epochs": 1000})
        training = Training([self._spec(config, f"{kind}-{engine}")], self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds = []
        for index in range(warm_ups + count):
            started = clock(self.device)
            training.graph.step(index) if training.graph else training.updaters[0].step(index)
            seconds.append(clock(self.device) - started)
        return 1 / statistics.median(seconds[warm_ups:]), training.note

    def _train(self, kind: str, name: str, seed: int, until: int | None = None) -> str:
        """Train to a step, unless this training is there already; return the checksum of its weights and Adam."""
        spec = self._spec(self._training_config(kind).model_copy(update={"seed": seed}), name)
        Training([spec], self.device).run(until or self.steps, lambda: False, lambda done: None)
        return _digest(spec, until or self.steps)

    def _training_config(self, kind: str) -> TrainConfig:
        return self.make_config(kind, engine="auto", epochs=self.steps, save_freq=1000)

    def _spec(self, config: TrainConfig, name: str) -> RunSpec:
        experiment = Experiment(self.folder / name)
        return RunSpec(config, experiment.checkpoints(), experiment.metrics())


def _digest(spec: RunSpec, step: int) -> str:
    """Return the checksum of a whole checkpoint: weights, card, Adam's moments, what is not logged yet."""
    files = sorted(step_folder(spec.checkpoints, step).iterdir())
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _same(expected: str, actual: str) -> Finding:
    ok = actual == expected
    return Finding(ok, f"the same bits ({actual})" if ok else f"other bits: {actual} instead of {expected}")
