"""The arguments of launch, train and evaluate, and what the arguments of several commands have in common.

--help must answer at once: what is slow to import (pydantic above all) is imported inside functions here.
"""

import argparse
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from anml.config import shipped
from anml.errors import AnmlError, ConfigError, SubmissionError

TYPE_CHECKING = False  # typing is slow to import.
if TYPE_CHECKING:
    from anml.experiment import Experiment

EXIT_DONE, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
WANDB_MODES = ("online", "offline", "disabled")
DEVICES = ("auto", "cpu", "cuda")


def launch_arguments(parser: argparse.ArgumentParser) -> None:
    clusters = ", ".join(sorted(path.stem for path in shipped("slurm").glob("*.yml")))
    add_config_arguments(parser, "training config", required=True)
    parser.add_argument("--project", help="project name: a folder of experiments and a W&B project")
    parser.add_argument("--entity", help="W&B entity (team or user)")
    parser.add_argument("--group", help="name of the experiment (default: a new one); an existing one is completed")
    parser.add_argument("--cluster", metavar="NAME", help=f"cluster profile: {clusters}, or the path of one")
    add_experiments_dir_argument(parser)
    parser.add_argument("-n", "--dry-run", action="store_true", help="show jobs and scripts, create nothing")
    parser.add_argument("--check", action="store_true", help="with --dry-run: check the model and the data as well")
    parser.add_argument("--st", "--smoke-test", action="store_true", dest="smoke_test", help="everything, but tiny")
    parser.add_argument("--seed", type=int, help="training seed")
    vary = "train with each of several values of a key, e.g. --vary outer_lr=0.001,0.003 (repeatable)"
    parser.add_argument("--vary", metavar="KEY=VALUE,VALUE", action="append", default=[], help=vary)
    no_reuse = "measure everything, also what another experiment has measured of the same content"
    parser.add_argument("--no-reuse", action="append_const", const="reuse=false", dest="overrides", help=no_reuse)
    parser.add_argument("--wandb", choices=WANDB_MODES, help="W&B mode (default: see docs)")
    parser.epilog = f"Any sbatch option may be given as --name=value; it overrides the cluster profile. {parser.epilog}"
    own_options = [flag for action in parser._actions for flag in action.option_strings]
    parser.set_defaults(own_options=own_options, sbatch_options=[])


def train_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, "training config")
    parser.add_argument("--run-dir", metavar="DIR", help="folder of the run (default: experiments/by-hand/<model>)")
    parser.add_argument("--device", choices=DEVICES, help="where to compute")
    parser.add_argument("--inner-lr", type=float, help="which inner learning rate to train with")
    parser.add_argument("--seed", type=int, help="which seed to train")
    parser.add_argument("--training", metavar="NAME", help="which training of a config with vary, by its name")
    parser.add_argument("--until-step", metavar="N", type=positive, help="stop after this step (default: at the end)")
    add_job_arguments(parser, wandb_help="W&B mode (default: disabled)")


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, "evaluation config")
    models = "folder of a checkpoint (step-NNNNNN), or a state_dict of higherANML (.pth); one or several"
    parser.add_argument("-m", "--model", metavar="CHECKPOINT", nargs="+", action="extend", help=models)
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to compute")
    add_list = partial(parser.add_argument, nargs="+", action="extend", metavar="N")
    add_list("--classes", type=int, help="how many classes to learn; one number or several")
    add_list("--train-examples", type=int, help="examples of each class to learn from; one number or several")
    add_list("--test-examples", type=int, help="examples of each class to be tested on; one number or several")
    add_list("-l", "--lr", type=float, help="learning rate; one number or several")
    parser.add_argument("-r", "--runs", type=int, help="runs, each with its own classes and examples")
    parser.add_argument("--seed", type=int, help="seed of the evaluation")
    parser.add_argument("-o", "--output", metavar="CSV", help="also write the results to this file")
    add_job_arguments(parser)
    for name in ("--run-dir", "--flavor"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--train-inner-lr", type=float, help=argparse.SUPPRESS)
    for name in ("--training", "--checkpoint"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    for name in ("--step", "--stage", "--train-seed", "--points-per-job", "--first-task"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)


def add_config_arguments(parser: argparse.ArgumentParser, what: str, required: bool = False) -> None:
    parser.add_argument("-c", "--config", metavar="PATH", type=config_file, required=required, help=what)
    add_data_path_argument(parser)
    override = "override a key of the config, e.g. --set inner_lr=0.05 --set eval.olft.runs=3 (repeatable)"
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides", help=override)


def add_data_path_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-path", metavar="DIR", help="where the data set is (default: ANML_DATA, or download)")


def add_experiments_dir_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--experiments-dir", metavar="DIR", help="where experiments are (default: ANML_EXPERIMENTS)")


def add_address_arguments(parser: argparse.ArgumentParser) -> None:
    """Add PROJECT/GROUP and --experiments-dir, which `find_experiment` reads."""
    parser.add_argument("experiment", metavar="PROJECT/GROUP", help="the experiment, or the path of its folder")
    add_experiments_dir_argument(parser)


def add_job_arguments(parser: argparse.ArgumentParser, wandb_help: str = argparse.SUPPRESS) -> None:
    """Add what the scripts of planned jobs pass along (not meant for typing)."""
    parser.add_argument("--wandb", choices=WANDB_MODES, default="disabled", help=wandb_help)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--cluster-device", default="auto", help=argparse.SUPPRESS)
    parser.add_argument("--min-free-gb", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--max-requeues", type=int, default=0, help=argparse.SUPPRESS)


def config_file(text: str) -> Path:
    """Return the path of a config, for argparse: a file that exists, else the shipped config of that name."""
    folder = shipped("configs")
    name = text.removeprefix("configs/")
    for path in (Path(text), folder / name, folder / f"{name}.yml"):
        if path.is_file():
            return path
    message = f"no file {text}{_similar_configs(Path(text), folder)}"
    raise argparse.ArgumentTypeError(message)


def _similar_configs(path: Path, shipped_configs: Path) -> str:
    import difflib

    folder = path if path.is_dir() else path.parent
    beside = sorted(folder.glob("*.yml"))
    configs = {file.stem: file.relative_to(shipped_configs.parent) for file in sorted(shipped_configs.rglob("*.yml"))}
    configs |= {file.stem: file for file in beside}
    if close := difflib.get_close_matches(path.stem, configs):
        return f"; did you mean {' or '.join(str(configs[name]) for name in close)}?"
    return f"; in {folder} there are: {', '.join(file.name for file in beside)}" if beside else ""


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        message = f"must be a whole number of 1 or more, found {text!r}"
        raise argparse.ArgumentTypeError(message)
    return int(text)


@contextmanager
def collecting(problems: list[str], key: str = "") -> Iterator[None]:
    """Add the problems of an error, each after `key` and each once, to a list, so that the next check can run too."""
    try:
        yield
    except SubmissionError:  # The config and the command line are not at fault.
        raise
    except AnmlError as error:
        new = error.problems if isinstance(error, ConfigError) else [str(error)]
        problems += [key + problem for problem in new if key + problem not in problems]


def check_output(option: str, *files: Path) -> None:
    """Raise ConfigError unless each file can be written, or is a regular file that can be replaced.

    Folders, devices and links are not replaced: a link may lead to any of them.
    """
    import tempfile

    for file in files:
        if os.path.lexists(file) and not stat.S_ISREG(os.lstat(file).st_mode):
            message = f"{option} {file}: is a folder, a device or a link, and only files are replaced; name another"
            raise ConfigError(message)
        try:
            folder = next(parent for parent in file.absolute().parents if parent.exists())
            # `write_text` gives its temporary files such names: they must not be too long either.
            tempfile.NamedTemporaryFile(dir=folder, prefix=f".{file.name}.").close()
        except OSError as error:
            message = f"{option} {file}: cannot be written ({error.strerror}); choose another file"
            raise ConfigError(message) from None


def print_notices(notices: Sequence[str]) -> None:
    for notice in notices:
        print(f"note: {notice}", file=sys.stderr)


def find_experiment(options: argparse.Namespace) -> "Experiment":
    """Return the experiment that `add_address_arguments` asked for. Raises ConfigError with those that exist."""
    from anml.jobs.launch import experiments_dir

    return find_experiments(experiments_dir(options.experiments_dir), options.experiment)[0]


def find_experiments(root: Path, name: str, or_project: bool = False) -> "list[Experiment]":
    """Return the experiment PROJECT/GROUP below a folder or at that path, or all of a project, sorted by group.

    Raises ConfigError with the names that exist.
    """
    from anml.config.binding import nearest
    from anml.experiment import Experiment

    for folder in (root / name, Path(name)):
        for pattern in ("config.yml", "[!.]*/config.yml") if or_project else ("config.yml",):
            if configs := sorted(folder.glob(pattern)):
                return [Experiment(config.parent.resolve()) for config in configs]
    what = "project" if or_project and "/" not in name else "experiment"
    folders = [config.parent.relative_to(root) for config in root.glob("*/*/config.yml")]
    names = sorted({str(folder.parent if what == "project" else folder) for folder in folders})
    hint = nearest(name, names) or (f"; there are: {', '.join(names[-10:])}" if names else "")
    message = f"no {what} {name} in {root}{hint}"
    raise ConfigError(message)
