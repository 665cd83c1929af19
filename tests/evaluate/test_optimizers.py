"""Learning by other optimizers than Adam, by a schedule, and with a reservoir of earlier examples."""

from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import scipy.stats
import torch

from anml.config.evaluation import EvalConfig, Stepper
from anml.config.load import load_eval_configs
from anml.errors import ConfigError
from anml.evaluate.learner import ReferenceLearner
from anml.evaluate.prepared_run import Shape, check_head
from anml.evaluate.protocols import learn_in_sequence, learn_with_replay
from anml.optim import count_moments, make_stepper
from tests.evaluate.runs import ignore, prepare_run
from tests.evaluate.test_protocols import learn, make_images, plain_adam, plain_step

SHAPE = Shape(classes=12, train_examples=10, test_examples=5)
COSINE = {"lr_scheduler": "CosineAnnealingLR", "lr_scheduler_args": {"T_max": 120}}


def test_learning_equals_a_plain_loop_of_torchs_optimizer_and_schedule(model, data, make_config) -> None:
    config = make_config(optimizer="SGD", optimizer_args={"momentum": 0.9, "nesterov": True}, eval_freq=0, **COSINE)
    prepared = prepare_run(model, config, data, SHAPE, run=0, dtype=torch.float64)
    learner = ReferenceLearner(prepared, 0.05)
    learn(learn_in_sequence, learner, prepared, config)

    images = make_images(model, data, config)
    head = list(images.model.requires_grad_(False).head.requires_grad_(True).parameters())
    optimizer = torch.optim.SGD(head, lr=0.05, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=120)
    for step in range(120):
        plain_step(images.model, optimizer, images.train_inputs[[step]], images.train_labels[[step]])
        schedule.step()
    for found, expected in zip(learner.model.head.parameters(), head, strict=True):
        assert (found - expected).abs().max() <= 1e-12


@pytest.mark.parametrize(
    ("changes", "moments"),
    [({}, 2), ({"optimizer": "SGD"}, 0), ({"optimizer": "SGD", "optimizer_args": {"momentum": 0.9}}, 1)],
)
def test_moments_of_an_optimizer_are_counted(make_config, changes, moments: int) -> None:
    assert count_moments(make_config(**changes).stepper) == moments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "SDG"}, "optimizer: torch has no 'SDG'; did you mean 'SGD'?"),
        ({"optimizer": "SGD", "optimizer_args": {"momentun": 1}}, "optimizer_args: SGD does not take"),
        ({"lr_scheduler": "StepLR"}, "lr_scheduler_args: StepLR does not take"),
    ],
)
def test_what_torch_does_not_have_is_told_before_anything_learns(model, make_config, changes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_head(model, make_config(**changes))


@pytest.mark.parametrize("name", [name for name, kind in vars(torch.optim).items() if isinstance(kind, type)])
def test_every_optimizer_of_torch_steps_or_is_refused(name: str) -> None:
    weights = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(3))]
    try:
        step = make_stepper(Stepper(name), 0.1, weights)
    except ConfigError:
        assert name in ("LBFGS", "SparseAdam", "Muon", "Optimizer")
        return
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    step()
    assert (weights[0] != 1).all()


@pytest.mark.parametrize("engine", ["native", "lanes"])
def test_an_engine_that_learns_by_adam_alone_is_refused(tmp_path, engine: str) -> None:
    (tmp_path / "eval.yml").write_text(f"dataset: glyphs\noptimizer: SGD\nengine: {engine}\n")
    with pytest.raises(ConfigError) as caught:
        load_eval_configs(tmp_path / "eval.yml")
    [problem] = caught.value.problems
    assert problem.startswith(f"{tmp_path}/eval.yml:3: engine: {engine} learns by Adam alone")


class Recorder(ReferenceLearner):
    """Also notes the batches."""

    batches: list[list[int]]

    def learn_batch(self, picks: Sequence[torch.Tensor]) -> None:
        super().learn_batch(picks)
        self.batches.append(picks[0].tolist())


def replayed(model, data, config: EvalConfig) -> tuple[list[list[int]], list[int]]:
    """Return the batches of a run, and after how many classes it was scored."""
    prepared = prepare_run(model, config, data, SHAPE, run=0)
    learner = Recorder(prepared, 0.01)
    learner.batches = []
    scores = learn(learn_with_replay, learner, prepared, config)
    return learner.batches, [score.classes_trained for score in scores]


def test_replay_learns_each_example_with_some_of_the_reservoir(model, data, make_config) -> None:
    config = make_config(eval_method="replay", replay_size=200, batch_size=4, eval_freq=[3, 12])
    batches, scored = replayed(model, data, config)
    assert [batch[0] for batch in batches] == list(range(120))
    assert [len(batch) for batch in batches] == [min(step + 1, 4) for step in range(120)]
    assert all(len(set(batch)) == len(batch) and max(batch) == batch[0] for batch in batches)
    assert scored == [3, 12]


def test_a_reservoir_takes_one_example_at_a_time_and_keeps_its_size(model, data, make_config) -> None:
    config = make_config(eval_method="replay", replay_size=5, batch_size=100)  # A batch shows the whole reservoir.
    reservoirs = [set(batch[1:]) for batch in replayed(model, data, config)[0]]
    assert [len(reservoir) for reservoir in reservoirs] == [min(step, 5) for step in range(120)]
    for step, (before, after) in enumerate(pairwise(reservoirs)):
        assert after - before <= {step}
    assert max(reservoirs[-1]) > 20


def test_what_replay_learns_is_what_a_plain_loop_learns_from_the_same_batches(model, data, make_config) -> None:
    config = make_config(eval_method="replay", replay_size=20, batch_size=4, eval_freq=0)
    learner = Recorder(prepare_run(model, config, data, SHAPE, run=0, dtype=torch.float64), 0.01)
    learner.batches = []
    learn(learn_with_replay, learner, learner.prepared, config)
    images = make_images(model, data, config)
    optimizer = plain_adam(images.model, ["fc.weight", "fc.bias"], 0.01)
    for batch in learner.batches:
        plain_step(images.model, optimizer, images.train_inputs[batch], images.train_labels[batch])
    for found, expected in zip(learner.model.head.parameters(), images.model.head.parameters(), strict=True):
        assert (found - expected).abs().max() <= 1e-12


def test_a_reservoir_keeps_each_example_with_the_same_probability(make_config) -> None:
    """By a test of chi-squared on 1,000 runs of one seed: 2 of 20 examples (Vitter 1985, algorithm R)."""
    kept, examples, runs = 2, 20, 1000
    labels, shape = torch.zeros(examples + 1, dtype=torch.int64), Shape(1, examples + 1, 1)
    prepared: Any = [
        SimpleNamespace(run=run, shape=shape, train_labels=labels, test_labels=labels) for run in range(runs)
    ]
    batches: list[Sequence[torch.Tensor]] = []
    learner: Any = SimpleNamespace(learn_batch=batches.append, logits=list)
    config = make_config(eval_method="replay", replay_size=kept, batch_size=kept + 1, eval_freq=0)
    assert list(learn_with_replay(learner, prepared, config, ignore)) == [[]]
    # The last batch has its new example, and the whole reservoir of those before.
    counts = torch.stack([batch[1:] for batch in batches[-1]]).flatten().bincount(minlength=examples).double()
    share = kept / examples
    statistic = (counts - runs * share).square().sum() / (runs * share * (1 - share)) * (examples - 1) / examples
    assert scipy.stats.chi2.sf(statistic, examples - 1) > 1e-4
