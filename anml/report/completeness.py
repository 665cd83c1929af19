"""What a config asks for against what the results hold: a sweep that is incomplete must say so."""

from collections import Counter
from collections.abc import Sequence

from anml.config.training import TrainConfig
from anml.report.tables import finals
from anml.report.wording import checkpoint, unit
from anml.results import ResultRow


def missing_results(config: TrainConfig, rows: Sequence[ResultRow]) -> list[str]:
    """Return a sentence for every flavor and checkpoint that has fewer trajectories than its sweep has points."""
    found = Counter((row.flavor, row.checkpoint_step, row.model, row.train_seed) for row in finals(rows))
    steps = [*([0] if config.eval_untrained else []), *config.checkpoint_steps]
    sentences = []
    for flavor, evaluation in config.eval.items():
        for step in steps:
            for one in config.variations:
                alone = config.alone(one)
                has, wanted = found[flavor, step, alone.display_name, alone.seed], evaluation.count_points()
                if has < wanted:
                    where = ", ".join(filter(None, (flavor, checkpoint(step, unit(config)), one.words)))
                    sentences.append(f"{where}: {_amount(has, wanted)}")
    return sentences


def _amount(has: int, wanted: int) -> str:
    return f"{has:,} of {wanted:,} trajectories" if has else "no results"
