"""`evaluate`: one evaluation, planned or by hand."""

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from anml.cli.arguments import check_output, collecting, print_notices
from anml.config.evaluation import EvalConfig
from anml.config.load import load_eval_configs, load_experiment_config
from anml.errors import ConfigError
from anml.experiment import Experiment
from anml.jobs.job import JobContext, array_task, run_job

PTH = ".pth"  # A plain state_dict of higherANML.


def evaluate(options: argparse.Namespace) -> int:
    return _planned(options) if options.run_dir else _by_hand(options)


def _planned(options: argparse.Namespace) -> int:
    experiment = Experiment(Path(options.run_dir))
    config = load_experiment_config(experiment.config_file).config
    if options.flavor not in config.eval or options.step is None:
        flavors = ", ".join(config.eval)
        message = f"--run-dir takes --flavor and --step; flavors of this experiment: {flavors}; found {options.flavor}"
        raise ConfigError(message)
    training = options.checkpoint or config.training_id(options.train_inner_lr, options.train_seed, options.training)
    task = array_task() if options.points_per_job else None

    def work(context: JobContext) -> bool:
        from anml.evaluate.job import evaluate_checkpoint  # torch is imported after errors of the config are told.

        share = None if task is None else task + (options.first_task or 0)
        return evaluate_checkpoint(
            context, config, experiment, options.flavor, options.step, training, share,
            options.points_per_job, options.cluster_device, options.wandb, options.min_free_gb,
            options.stage or 0,
        )  # fmt: skip

    return run_job(experiment, options.job, task, work, options.max_requeues)


def _by_hand(options: argparse.Namespace) -> int:
    if options.config is None and options.model is None:
        message = "give an evaluation config: -c configs/eval-omni-anml.yml"
        raise ConfigError(message)
    names = ("classes", "train_examples", "test_examples", "lr", "runs", "seed", "data_path", "model")
    loaded = load_eval_configs(options.config, options.overrides, {n: getattr(options, n) for n in names})
    configs, config, notices = [part.config for part in loaded], loaded[0].config, loaded[0].notices
    if config.model is None:
        message = "give the checkpoint to evaluate: -m experiments/<project>/<group>/checkpoints/step-NNNNNN"
        raise ConfigError(message)
    checkpoints = checkpoint_paths(config.model)
    output = _output(options.output)
    print_notices([*notices, *_assumptions(options.config, config, checkpoints)])

    def work(context: JobContext) -> bool:
        from anml.evaluate.by_hand import evaluate_by_hand  # torch is imported after errors of the config are told.

        return evaluate_by_hand(context, configs, checkpoints, options.device, output)

    return run_job(None, None, None, work)


def _assumptions(path: Path | None, config: EvalConfig, checkpoints: Sequence[Path]) -> list[str]:
    """Return notices of what this evaluation assumes because the user did not say it."""
    notices = []
    if path is None:
        classes, lrs = (", ".join(f"{value:g}" for value in values) for values in (config.classes, config.lr))
        notices.append(
            f"no -c CONFIG: {config.eval_method}, {classes} classes, lr {lrs}, {config.runs} runs; "
            "the other defaults are in docs/configs.md"
        )
    for file in checkpoints:
        if file.suffix == PTH and not re.search(r"-\d+$", file.stem):
            notices.append(f"{file}: the name does not end in -STEP; checkpoint_step is 0 in the results")
    return notices


def checkpoint_paths(names: Sequence[str], option: str = "--model") -> list[Path]:
    """Return the paths of checkpoints. Raises ConfigError with all that are none or are named twice.

    option: the one that messages speak of.
    """
    problems: list[str] = []
    checkpoints: dict[Path, Path] = {}
    for name in names:
        with collecting(problems, f"{option} "):
            path = _checkpoint(Path(name).expanduser())
            same = checkpoints.setdefault(path.resolve(), path)
            if same is not path:
                problems.append(f"{option} {path}: is the same as {same}; name it once")
    if problems:
        raise ConfigError(problems)
    return list(checkpoints.values())


def _checkpoint(path: Path) -> Path:
    """Return the path of a checkpoint. Raises ConfigError naming those that lie near."""
    if (path / "model.json").is_file() or (path.suffix == PTH and path.is_file()):
        return path
    if path.suffix == ".net":
        copied = f'torch.load("{path}", map_location="cpu", weights_only=True)["state"], "{path.with_suffix(PTH)}"'
        message = (
            f"{path}: a .net file holds source code that is executed when it is loaded, so it is never read "
            f"here. Copy its tensors alone into a {PTH} file and evaluate that: "
            f"python -c {shlex.quote(f'import torch; torch.save({copied})')}"
        )
    elif path.is_file():
        message = f"{path}: is neither a folder with model.safetensors and model.json, nor a {PTH} of higherANML"
    else:
        # The path may be that of an experiment, or of a checkpoint that does not exist beside others that do.
        cards = [*path.parent.glob("step-*/model.json"), *path.glob("*/model.json")]
        cards += [*path.glob("checkpoints/*/model.json"), *path.glob("checkpoints/*/*/model.json")]
        existing = sorted({str(card.parent) for card in cards})
        hint = f"; there are: {', '.join(existing[-10:])}" if existing else ""
        what = "no checkpoint here: expected a folder with model.safetensors and model.json"
        message = f"{path}: {'no such file' if path.suffix == PTH else what}{hint}"
    raise ConfigError(message)


def _output(name: str | None) -> Path | None:
    """Return the path of the results. Raises ConfigError where they, or the values of classes, cannot be written."""
    if name is None:
        return None
    path = Path(name).expanduser()
    if path.suffix == ".parquet":
        message = f"--output {path}: name a .csv; the values of each class go into a .parquet beside it"
        raise ConfigError(message)
    check_output("--output", path, path.with_suffix(".parquet"))
    return path
