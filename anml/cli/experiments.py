"""`ls` and `clean`: all experiments of a folder, and what of them takes space for nothing."""

import argparse
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.table import Table

from anml.cli.arguments import add_experiments_dir_argument, find_experiments, positive
from anml.config import cache_dir
from anml.config.load import load_experiment_config
from anml.errors import AnmlError
from anml.experiment import Experiment
from anml.jobs.job_status import ENDED
from anml.jobs.launch import experiments_dir, load_launch
from anml.jobs.status import overall_state, read_jobs
from anml.jobs.submission import one_at_a_time

KINDS = ("checkpoints", "failed", "caches")
# What experiments consist of. A folder that holds anything else is not deleted as a whole.
_OUR_FILES = {
    "checkpoints", "code", "config.yml", "environment.json", "jobs", "metrics", "plan.json", "report", "results",
    "wandb",
}  # fmt: skip
_OUR_CHECKPOINT_FILES = {"model.json", "model.safetensors", "training.json", "training.safetensors"}
# omniglot-train-28px-0123456789abcdef-v2.npy: the images, then what they were made of.
_ARRAY = re.compile(r"(?P<images>.+-(train|eval)-\d+px)-(?P<origin>\w+)-v\d+\.npy")


def ls_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="PROJECT[/GROUP]", nargs="*", help="only these (default: every project)")
    add_experiments_dir_argument(parser)


def ls(options: argparse.Namespace) -> None:
    """Show every experiment, by what its files say: no scheduler is asked."""
    from anml.report.index import describe

    table = Table("experiment", "launched", "model", "data", "state", box=None, pad_edge=False)
    for experiment in _experiments(options):
        about = describe(experiment)
        state = about["state"] + ("; its report is older" if about["is_stale"] else "")
        table.add_row(_name(experiment), *(about[key] for key in ("launched", "model", "dataset")), state)
    Console(highlight=False).print(table if table.row_count else f"No experiments in {_root(options)}.")


def _root(options: argparse.Namespace) -> Path:
    return experiments_dir(options.experiments_dir)


def _experiments(options: argparse.Namespace) -> list[Experiment]:
    """Return the experiments of the names given, or all. Raises ConfigError with the names that exist."""
    root = _root(options)
    names = options.names or sorted({config.parent.parent.name for config in root.glob("[!.]*/[!.]*/config.yml")})
    named = chain.from_iterable(find_experiments(root, name, or_project=True) for name in names)
    return list(dict.fromkeys(named))


def clean_arguments(parser: argparse.ArgumentParser) -> None:
    what = "only these experiments (default: every project, and the cache of images)"
    parser.add_argument("names", metavar="PROJECT[/GROUP]", nargs="*", help=what)
    parser.add_argument("--delete", action="store_true", help="delete what is shown otherwise")
    only = "the checkpoints before the last, of what is done; failed experiments without results; unused caches "
    only += "(repeatable; default: all three)"
    parser.add_argument("--only", choices=KINDS, action="append", help=only)
    days = "leave what has changed in the last N days (default: 7)"
    parser.add_argument("--days", metavar="N", type=positive, default=7, help=days)
    add_experiments_dir_argument(parser)


@dataclass(frozen=True)
class Waste:
    """Files and folders that may go, and why."""

    paths: Sequence[Path]
    why: str

    @property
    def stats(self) -> list[os.stat_result]:
        """Of the paths and of all below them; links count as such."""
        return [path.lstat() for path in chain(self.paths, *(path.rglob("*") for path in self.paths))]

    @property
    def bytes(self) -> int:
        return sum(stat.st_size for stat in self.stats)

    @property
    def is_ours(self) -> bool:
        """Whether everything is this user's."""
        return all(stat.st_uid == os.getuid() for stat in self.stats)

    def delete(self) -> None:
        for path in self.paths:
            if not path.is_dir():
                path.unlink()
                continue
            # Whatever befalls this process, no half of a folder keeps its name.
            grave = Path(tempfile.mkdtemp(dir=path.parent, prefix=".deleted-"))
            shutil.rmtree(path.rename(grave / path.name).parent)


def clean(options: argparse.Namespace) -> None:
    """Show what takes space for nothing; with --delete, delete it. What runs, waits or is another user's stays."""
    kinds, before = options.only or KINDS, time.time() - 86400 * options.days
    total = 0
    for experiment in _experiments(options):
        if experiment.root.parent.parent == _root(options):
            total += _clean_experiment(experiment, kinds, before, options.delete)
        else:  # What a link leads to may be an archive.
            print(f"{_name(experiment)}: left alone: it lies outside of {_root(options)}")
    if "caches" in kinds and not options.names and (arrays := _unused_arrays(before)):
        waste = Waste(arrays, f"{cache_dir()}: {len(arrays)} arrays of images that newer ones replace")
        total += _see_to(waste, options.delete)
    if not total:
        print(f"Nothing to delete that is older than {options.days} days.")
    elif not options.delete:
        print(f"{total / 1e6:.1f} MB. Nothing was deleted. To delete this, add --delete.")


def _clean_experiment(experiment: Experiment, kinds: Sequence[str], before: float, delete: bool) -> int:
    """Return how many bytes of an experiment may go, or went."""
    try:
        if not (waste := _waste(experiment, kinds, before)):
            return 0
        # Else a retry could begin while its checkpoints go.
        with one_at_a_time(experiment) if delete else nullcontext():
            scheduler = load_launch(experiment).make_scheduler()
            outcomes = read_jobs(experiment, scheduler)
            if scheduler.live_ids() or any(outcome.state not in ENDED for outcome in outcomes):
                print(f"{_name(experiment)}: left alone: {overall_state(outcomes)}")
                return 0
            return _see_to(waste, delete)
    except AnmlError as error:
        print(f"{_name(experiment)}: left alone: {error}")
        return 0


def _see_to(waste: Waste, delete: bool) -> int:
    size = waste.bytes
    if delete:
        waste.delete()
    print(f"{'deleted: ' if delete else ''}{waste.why} ({size / 1e6:.1f} MB)")
    return size


def _waste(experiment: Experiment, kinds: Sequence[str], before: float) -> Waste | None:
    """Return what may go of an experiment if none of its jobs runs or waits, by what its files say. Raises ConfigError.

    before: nothing, if a job has written its status since then.
    """
    outcomes = read_jobs(experiment)
    if not outcomes or max(outcome.status.updated or 0.0 for outcome in outcomes) > before:
        return None
    name, are_done = _name(experiment), all(outcome.state == "done" for outcome in outcomes)
    waste = None
    if "checkpoints" in kinds and are_done and (earlier := list(_earlier_checkpoints(experiment))):
        waste = Waste(earlier, f"{name}: done: {len(earlier)} checkpoints before the last")
    if "failed" in kinds and not are_done and not any(experiment.results.glob("*.csv")):
        waste = Waste([experiment.root], f"{name}: failed without results: the whole experiment")
        names = {path.name for path in experiment.root.iterdir() if not re.match(r"\.|code-\d+$", path.name)}
        if others := sorted(names - _OUR_FILES):
            print(f"{name}: left alone: holds {', '.join(others)}")
            return None
    return waste if waste and waste.is_ours else None


def _earlier_checkpoints(experiment: Experiment) -> Iterator[Path]:
    config = load_experiment_config(experiment.config_file).config
    for training in config.trainings:
        last = experiment.checkpoint(config.checkpoint_steps[-1], training.tag)
        saved = [folder for folder in last.parent.glob("step-*") if folder.is_dir() and not folder.is_symlink()]
        for folder in sorted(saved) if (last / "model.safetensors").is_file() else ():
            if folder.name < last.name and {file.name for file in folder.iterdir()} <= _OUR_CHECKPOINT_FILES:
                yield folder


def _unused_arrays(before: float) -> list[Path]:
    """Return the arrays that no data set leads to any more and what broken conversions left, unread since `before`."""
    arrays = {file: match for file in cache_dir().glob("*.npy") if (match := _ARRAY.fullmatch(file.name))}
    newest = {match["images"]: file for file, match in sorted(arrays.items(), key=lambda item: item[0].stat().st_mtime)}
    records = "".join(record.read_text(errors="replace") for record in cache_dir().glob("*.json"))
    replaced = [f for f, match in arrays.items() if f not in newest.values() and match["origin"] not in records]
    files = {file: file.lstat() for file in (*replaced, *cache_dir().glob(".*.npy.*"))}
    return [file for file, s in files.items() if s.st_uid == os.getuid() and max(s.st_mtime, s.st_atime) < before]


def _name(experiment: Experiment) -> str:
    return f"{experiment.project}/{experiment.group}"
