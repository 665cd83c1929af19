"""What a config asks for against what the results hold: a sweep that is incomplete must say so."""

from collections import Counter
from collections.abc import Collection, Sequence

from anml.config.training import TrainConfig
from anml.report.tables import finals
from anml.report.wording import checkpoint, unit
from anml.results import ResultRow


def missing_results(config: TrainConfig, rows: Sequence[ResultRow], models: Collection[str] | None = None) -> list[str]:
    """Return a sentence for every flavor and checkpoint that has fewer trajectories than its sweep has points.

    models: only of these, by the names that results have (default: all).
    """
    found = Counter((row.flavor, row.checkpoint_step, row.model, row.train_seed) for row in finals(rows))
    steps = [*([0] if config.eval_untrained else []), *config.checkpoint_steps]
    trainings = [(one, config.alone(one)) for one in config.variations]
    trainings = [(one, alone) for one, alone in trainings if models is None or alone.display_name in models]
    sentences = []
    for flavor, evaluation in config.eval.items():
        for step in steps:
            for one, alone in trainings:
                has, wanted = found[flavor, step, alone.display_name, alone.seed], evaluation.count_points()
                if has < wanted:
                    where = ", ".join(filter(None, (flavor, checkpoint(step, unit(config)), one.words)))
                    sentences.append(f"{where}: {_amount(has, wanted)}")
    return sentences


def _amount(has: int, wanted: int) -> str:
    return f"{has:,} of {wanted:,} trajectories" if has else "no results"
