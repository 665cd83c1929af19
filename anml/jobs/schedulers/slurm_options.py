"""The options of sbatch, out of a profile and a command line: how they are read, and what they ask for."""

import functools
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from anml.config.binding import nearest
from anml.config.profile import MEMORY, ClusterProfile, exclusive_options
from anml.config.training import TrainConfig
from anml.errors import ConfigError, SubmissionError
from anml.jobs.escalation import amount

if TYPE_CHECKING:
    from simple_slurm import Slurm

Options: TypeAlias = dict[str, str | int | bool]

# Decided by the launcher; a user's value would break dependencies, logs or requeueing.
_OURS = {
    "array", "clusters", "dependency", "error", "help", "job-name", "kill-on-invalid-dep", "no-requeue", "open-mode",
    "output", "parsable", "quiet", "requeue", "signal", "test-only", "usage", "wait", "wrap",
}  # fmt: skip


def parse_options(arguments: list[str]) -> Options:
    """Return options by name for words like `--mem=64G`, `--nice 5`, `--exclusive`. Raises ConfigError."""
    options: Options = {}
    problems = []
    name = ""
    for word in arguments:
        if word.startswith("--"):
            name, sign, value = word.removeprefix("--").partition("=")
            options[name] = value if sign else True
            if name in _OURS:
                problems.append(f"--{name}: is set by the launcher or the profile and cannot be chosen")
        elif options.get(name) is True:
            options[name] = word
        else:
            problems.append(f"{word}: not understood; sbatch options are written --name=value")
    if problems:
        raise ConfigError(problems)
    return options


def unlisted_options(options: Mapping[str, str | int | bool], own_options: Iterable[str]) -> list[str]:
    """Return what may be wrong with the options of a command line that are not in the list of sbatch's.

    A newer sbatch, or a plug-in of the site, may have more options.
    """
    try:
        listed, doubt = listed_options(), ""
    except SubmissionError as error:  # The machine at hand needs none of them.
        listed, doubt = frozenset(), f" ({error})"
    problems = []
    for name, value in options.items():
        if name in listed | _OURS:
            continue
        if (key := name.replace("-", "_")) in TrainConfig.model_fields:
            problems.append(f"--{name}: is a key of the config: --set {key}={'VALUE' if value is True else value}")
            continue
        names = sorted(listed | {option.removeprefix("--") for option in own_options})
        hint = nearest(name, names).replace("'", "").replace("mean ", "mean --")
        problems.append(f"--{name}: neither an option of this command nor of sbatch{hint}{doubt}")
    return problems


def unlisted_of_profile(profile: ClusterProfile) -> list[str]:
    """Return what may be wrong with the options of a profile that are not in the list of sbatch's."""
    listed = listed_options() | _OURS
    names = [name for name in profile.sbatch.names if name not in listed]
    return [f"profile {profile.name}: sbatch: {n}: sbatch has no such option{nearest(n, listed)}" for n in names]


def profile_problems(profile: ClusterProfile) -> list[str]:
    """Return what is wrong with the options of a profile, as far as the options alone tell."""
    sbatch = profile.sbatch
    problems = [f"{name}: is set by the launcher and cannot be chosen" for name in sbatch.names if name in _OURS]
    for kind, layer in sbatch.layers().items():
        problems += [f"{kind}: {' and '.join(pair)} exclude each other: keep one" for pair in exclusive_options(layer)]
    for kind in ("train", "evaluate", "report"):
        asked = {"GPUs": count_gpus(sbatch.for_kind(kind)), "nodes": _number(sbatch.for_kind(kind).get("nodes", 1))}
        problems += [
            f"{kind}: asks for {number} {what}, and a job is a single process, which uses one: ask for one. "
            "Seeds, inner_lrs and points_per_job make several jobs, which run side by side"
            for what, number in asked.items() if number > 1
        ]  # fmt: skip
    return [f"profile {profile.name}: sbatch: {problem}" for problem in problems]


def count_gpus(options: Mapping[str, str | int | bool]) -> int:
    """Return how many GPUs the options ask for.

    An instance of a divided GPU (MIG) counts as one, and so do all shards of a shared GPU together.
    """
    nodes = _number(options.get("nodes", 1))
    tasks = _number(options.get("ntasks", nodes * _number(options.get("ntasks-per-node", 1))))
    sockets = nodes * _number(options.get("sockets-per-node", 1))
    times = {"gpus": 1, "gres": nodes}
    for what in ("gpus", "tres"):
        times |= {f"{what}-per-node": nodes, f"{what}-per-task": tasks, f"{what}-per-socket": sockets}
    times |= {"tres-per-job": 1}
    counts = [_gpus_in(name, str(options[name])) * each for name, each in times.items() if name in options]
    return max(counts, default=0)


def memory_of_job(options: Options, profile: ClusterProfile) -> tuple[float, str] | None:
    """Return the most bytes that a job with these options gets, in a retry too, and what says so; None: nothing."""
    name = next((name for name in MEMORY if options.get(name)), None)
    if name is None or (name != "mem" and options.get("exclusive")):
        return None
    cpus = _number(options.get("cpus-per-task", 1)) * _number(options.get("ntasks", 1))
    # Slurm hands out whole cores, of two threads, and memory for both.
    times = {"mem": 1, "mem-per-cpu": 2 * cpus, "mem-per-gpu": count_gpus(options)}[name]
    try:
        sizes = [times * amount(name, str(options[name])), *(amount("mem", step) for step in profile.escalate.mem)]
    except ConfigError:
        return None  # sbatch may understand it.
    step = ", with its largest step of escalate" if profile.escalate.mem else ""
    words = f"{name} {options[name]} of profile {profile.name}{step}; give more (--{name}), or choose a smaller model"
    # 0 is all memory of a node.
    return (max(sizes) * 2**20, words) if all(sizes) else None


def _gpus_in(name: str, text: str) -> int:
    """Return the GPUs in `2`, `a100:2`, `gpu`, `gpu:a100:2(S:0),shard:3`, `gres/gpu:a100=2` or `gres:gpu:2`."""
    count = 0
    for part in re.sub(r"\(.*?\)", "", text).split(","):
        words = re.split("[:/=]", part.strip().removeprefix("gres:").removeprefix("gres/"))
        words = ["gpu", *words] if name.startswith("gpus") else words
        number = int(words[-1]) if words[-1].isdigit() else 1
        count += number if words[0] == "gpu" else min(number, 1) if words[0] in ("shard", "mps") else 0
    return count


def _number(value: str | int | bool) -> int:
    """Return the number of `2`, or the larger one of `1-2`."""
    return max(map(int, re.findall(r"\d+", str(value))), default=1)


@functools.cache  # simple_slurm reads its list for every script that it begins.
def listed_options() -> frozenset[str]:
    """Return the long names of the options that simple_slurm lists. Raises SubmissionError without it."""
    setters = [name for name in dir(new_script()) if name.startswith("set_")]
    return frozenset(name.removeprefix("set_").replace("_", "-") for name in setters) - {"shell"}


def render_options(options: Options, commands: Iterable[str]) -> str:
    """Return a script for sbatch. An option that is false is left out; true stands for an option without a value."""
    slurm = new_script()
    slurm.set_shell("/bin/bash")
    listed = listed_options()
    for name, value in options.items():
        if value is False:
            continue
        key = name.replace("-", "_")
        if name not in listed:
            slurm.parser.add_argument(f"--{key}")
        slurm.add_arguments(key, _quoted(value))
    for command in commands:
        slurm.add_cmd(command)
    # Options whose value may be left out take none that stands behind a blank.
    return re.sub(r"^(#SBATCH --\S+) +(?=\S)", r"\1=", slurm.script(convert=False), flags=re.MULTILINE)


def new_script() -> "Slurm":
    """Return an empty script. Raises SubmissionError without simple_slurm, which nothing but Slurm needs."""
    # A user's format for squeue, which simple_slurm refuses unless it is CSV.
    squeue_format = os.environ.pop("SQUEUE_FORMAT", None)
    try:
        from simple_slurm import Slurm

        return Slurm()
    except ModuleNotFoundError:
        message = "Slurm needs the package simple-slurm (docs/install.md): install it, or use --cluster local"
        raise SubmissionError(message) from None
    finally:
        if squeue_format is not None:
            os.environ["SQUEUE_FORMAT"] = squeue_format


def _quoted(value: str | int | bool) -> str:
    """Return a value as bash quotes it; simple_slurm would take one that starts with a dash for an option."""
    text = "" if value is True else shlex.quote(str(value))
    return f"'{text}'" if text.startswith("-") else text
