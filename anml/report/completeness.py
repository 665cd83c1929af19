"""What a config asks for against what the results hold: a sweep that is incomplete must say so."""

import pandas as pd

from anml.config.training import TrainConfig
from anml.report.tables import finals
from anml.report.wording import checkpoint, unit


def missing_results(config: TrainConfig, scores: pd.DataFrame) -> list[str]:
    """Return a sentence for every flavor and checkpoint that has fewer trajectories than its sweep has points."""
    ends = finals(scores)
    found = ends.groupby(["flavor", "checkpoint_step", "train_seed"]).size().to_dict() if len(ends) else {}
    steps = [*([0] if config.eval_untrained else []), *config.checkpoint_steps]
    sentences = []
    for flavor, evaluation in config.eval.items():
        wanted = evaluation.count_points()
        for step in steps:
            for seed in config.training_seeds:
                has = found.get((flavor, step, seed), 0)
                if has < wanted:
                    who = f"{flavor}, {checkpoint(step, unit(config))}" + (f", seed {seed}" if config.seeds else "")
                    what = f"{has:,} of {wanted:,} trajectories" if has else "no results"
                    sentences.append(f"{who}: {what}")
    return sentences
