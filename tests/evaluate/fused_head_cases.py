"""Run by test_fused_head.py in a process of its own, because Triton's interpreter is chosen when a kernel is defined.

Prints {case: furthest weight or logit from the plain learner in float64}.
"""

import json

import torch

from anml.config.evaluation import EvalConfig
from anml.data.class_images import ClassImages
from anml.evaluate import fused_head
from anml.evaluate.fused_head import FusedHeadLearner
from anml.evaluate.learner import ReferenceLearner
from anml.evaluate.prepared_run import PreparedRun, RunPreparer, Shape
from anml.models import build_model

LRS = [0.001, 0.03]


def prepare(betas: tuple[float, float], dtype: torch.dtype = torch.float64) -> list[PreparedRun]:
    """Return two runs whose head has 11 outputs for 36 inputs: neither is a multiple of what a program takes."""
    images = torch.randint(256, (4, 6, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    config = EvalConfig(dataset="omniglot", adam_betas=list(betas))  # type: ignore[arg-type]
    model = build_model("sanml", {"rln_chs": 4, "num_classes": 11}, (1, 28, 28), seed=1)
    return RunPreparer(model, config, ClassImages(images, "noise"), dtype).make(Shape(4, 2, 2), [0, 3])


def furthest(betas: tuple[float, float]) -> float:
    """Learn all, and some again, side by side and each alone; return the largest difference."""
    prepared_runs = prepare(betas)
    fused = FusedHeadLearner(prepared_runs, LRS)
    plain = [ReferenceLearner(prepared, lr) for prepared in prepared_runs for lr in LRS]
    for learner in (fused, *plain):
        for first, last in ((0, 2), (2, 4), (7, 8), (0, 1)):
            learner.learn_each(first, last)
    expected = [logits for learner in plain for logits in learner.logits()]
    pairs = [pair for both in zip(fused.logits(), expected, strict=True) for pair in zip(*both, strict=True)]
    heads = [learner.model.head for learner in plain]
    pairs += zip(fused.weight.transpose(0, 1).flatten(0, 1), (head.weight for head in heads), strict=True)
    return max((ours - theirs).abs().max().item() for ours, theirs in pairs)


def share_of_nan() -> float:
    """Return which share of the weights is no number after an input that is infinite."""
    prepared_runs = prepare((0.9, 0.999), torch.float32)
    prepared_runs[1].train_inputs[1] = float("inf")
    fused = FusedHeadLearner(prepared_runs, [0.001])
    fused.learn_each(0, 4)
    return fused.weight[0, 1].isnan().double().mean().item() - fused.weight[0, 0].isnan().double().mean().item()


if __name__ == "__main__":
    fused_head._ROWS, fused_head._COLUMNS = 8, 16
    cases = {"adam": furthest((0.9, 0.999)), "no momentum": furthest((0.0, 0.99)), "diverged": 1 - share_of_nan()}
    print(json.dumps(cases))
