"""`eval_anml.py`: one evaluation, planned or by hand."""

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from anml.cli.arguments import (
    add_common_arguments,
    add_data_path_argument,
    add_job_arguments,
    check_output,
    collecting,
    config_file,
    print_notices,
)
from anml.config.evaluation import EvalConfig
from anml.config.load import load_eval_configs, load_experiment_config
from anml.errors import ConfigError
from anml.experiment import Experiment
from anml.jobs.job import JobContext, array_task, run_job

# A plain state_dict of higherANML.
PTH = ".pth"
_COPY = "import torch; torch.save(%s)"


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = argparse.ArgumentParser(
        prog="eval_anml.py", description="Evaluate a trained model on classes it has never seen.", allow_abbrev=False
    )
    parser.add_argument("-c", "--config", metavar="PATH", type=config_file, help="evaluation config")
    parser.add_argument(
        "-m", "--model", metavar="CHECKPOINT", nargs="+", action="extend",
        help="folder of a checkpoint (step-NNNNNN), or a state_dict of higherANML (.pth); one or several",
    )  # fmt: skip
    add_data_path_argument(parser)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to compute")
    for names, kind, what in (
        (("--classes",), int, "how many classes to learn"),
        (("--train-examples",), int, "examples of each class to learn from"),
        (("--test-examples",), int, "examples of each class to be tested on"),
        (("-l", "--lr"), float, "learning rate"),
    ):
        parser.add_argument(
            *names, type=kind, nargs="+", action="extend", metavar="N", help=f"{what}; one number or several"
        )
    parser.add_argument("-r", "--runs", type=int, help="runs, each with its own classes and examples")
    parser.add_argument("--seed", type=int, help="seed of the evaluation")
    parser.add_argument("-o", "--output", metavar="CSV", help="also write the results to this file")
    parser.add_argument(
        "--wandb", choices=["online", "offline", "disabled"], default="disabled", help=argparse.SUPPRESS
    )
    add_common_arguments(parser)
    add_job_arguments(parser)
    for name in ("--run-dir", "--flavor"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--train-inner-lr", type=float, help=argparse.SUPPRESS)
    for name in ("--step", "--train-seed", "--points-per-job", "--first-task"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Evaluate."""
    options = make_parser().parse_args(arguments)
    return _planned(options) if options.run_dir else _by_hand(options)


def _planned(options: argparse.Namespace) -> int:
    experiment = Experiment(Path(options.run_dir))
    config = load_experiment_config(experiment.config_file).config
    if options.flavor not in config.eval or options.step is None:
        flavors = ", ".join(config.eval)
        message = f"--run-dir takes --flavor and --step; flavors of this experiment: {flavors}; found {options.flavor}"
        raise ConfigError(message)
    one = config.training_id(options.train_inner_lr, options.train_seed)
    task = array_task() if options.points_per_job else None

    def work(context: JobContext) -> bool:
        from anml.evaluate.job import evaluate_checkpoint  # torch: after --help and config errors.

        share = None if task is None else task + (options.first_task or 0)
        return evaluate_checkpoint(
            context, config, experiment, options.flavor, options.step, one, share,
            options.points_per_job, options.cluster_device, options.wandb, options.min_free_gb,
        )  # fmt: skip

    return run_job(experiment, options.job, task, work, options.max_requeues)


def _by_hand(options: argparse.Namespace) -> int:
    if options.config is None and options.model is None:
        message = "give an evaluation config: -c configs/eval-omni-anml.yml"
        raise ConfigError(message)
    names = ("classes", "train_examples", "test_examples", "lr", "runs", "seed", "data_path", "model")
    loaded = load_eval_configs(options.config, options.overrides, {n: getattr(options, n) for n in names})
    configs, (config, notices) = [part.config for part in loaded], loaded[0]
    if config.model is None:
        message = "give the checkpoint to evaluate: -m experiments/<project>/<group>/checkpoints/step-NNNNNN"
        raise ConfigError(message)
    checkpoints = _checkpoints(config.model)
    output = None if options.output is None else _output(options.output)
    print_notices([*notices, *_assumptions(options.config, config, checkpoints)])

    def work(context: JobContext) -> bool:
        from anml.evaluate.by_hand import evaluate_by_hand  # torch: after --help and config errors.

        return evaluate_by_hand(context, configs, checkpoints, options.device, output)

    return run_job(None, None, None, work)


def _assumptions(path: Path | None, config: EvalConfig, checkpoints: Sequence[Path]) -> list[str]:
    """Return what nobody has said and is taken for granted."""
    notices = []
    if path is None:
        classes, rates = (", ".join(f"{value:g}" for value in values) for values in (config.classes, config.lr))
        notices.append(
            f"no -c CONFIG: {config.eval_method}, {classes} classes, lr {rates}, {config.runs} runs; "
            "the other defaults are in docs/configs.md"
        )
    for file in checkpoints:
        if file.suffix == PTH and not re.search(r"-\d+$", file.stem):
            notices.append(f"{file}: the name does not end in -STEP; checkpoint_step is 0 in the results")
    return notices


def _checkpoints(names: Sequence[str]) -> list[Path]:
    """Return the paths of checkpoints. Raises ConfigError for each that is none, or is named twice."""
    problems: list[str] = []
    found: dict[Path, Path] = {}
    for name in names:
        with collecting(problems):
            path = _checkpoint(Path(name).expanduser())
            if path.resolve() in found:
                message = f"--model {path}: is the same as {found[path.resolve()]}; name it once"
                raise ConfigError(message)
            found[path.resolve()] = path
    if problems:
        raise ConfigError(tuple(problems))
    return list(found.values())


def _checkpoint(path: Path) -> Path:
    """Return the path of a checkpoint. Raises ConfigError naming those that lie near."""
    if (path / "model.json").is_file() or (path.suffix == PTH and path.is_file()):
        return path
    if path.suffix == ".net":
        raise ConfigError(_refusal(path))
    if path.is_file():
        message = (
            f"--model {path}: a checkpoint is a folder with model.safetensors and model.json, or a state_dict of "
            f"higherANML ({PTH}); this file cannot be read"
        )
        raise ConfigError(message)
    # Of an experiment's folder, or beside a checkpoint that is not there.
    places = [path.glob(f"{depth}/model.json") for depth in ("*", "checkpoints/*", "checkpoints/*/*")]
    found = sorted({str(card.parent) for place in [*places, path.parent.glob("step-*/model.json")] for card in place})
    hint = f"; there are: {', '.join(found[-10:])}" if found else ""
    what = "no checkpoint here: expected a folder with model.safetensors and model.json"
    message = f"--model {path}: {'no such file' if path.suffix == PTH else what}{hint}"
    raise ConfigError(message)


def _refusal(path: Path) -> str:
    """Return why a .net file is not read, and a command that takes the tensors out without executing the rest."""
    copied = f'torch.load("{path}", map_location="cpu", weights_only=True)["state"], "{path.with_suffix(PTH)}"'
    return (
        f"--model {path}: a .net file holds source code that is executed when it is loaded, so it is never read here. "
        f"Copy its tensors alone into a {PTH} file and evaluate that: python -c {shlex.quote(_COPY % copied)}"
    )


def _output(name: str) -> Path:
    """Return the path of the results. Raises ConfigError where they, or the values of classes, cannot be written."""
    path = Path(name).expanduser()
    if path.suffix == ".parquet":
        message = (
            f"--output {path}: the results are CSV; name a .csv, the values of each class go into a .parquet beside"
        )
        raise ConfigError(message)
    check_output("--output", path)
    check_output("--output", path.with_suffix(".parquet"))
    return path
