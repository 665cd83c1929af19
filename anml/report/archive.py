"""One file with everything that others need to check an experiment or to repeat it, and the checksum of each part."""

import hashlib
import io
import shlex
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from anml.atomic import read_json
from anml.config.load import load_experiment_config
from anml.errors import ConfigError
from anml.experiment import Experiment

CHECKSUMS = "SHA256SUMS"
_COMPRESSIONS = {".tar": "", ".gz": "gz", ".tgz": "gz", ".xz": "xz"}
_PARTS = ("config.yml", "environment.json", "plan.json", "code", "jobs", "metrics", "results", "report")
_README = """\
{project}/{group}: an experiment of anml {launched}

Launched by   python {command}
Code          code/ (git commit {git_commit}, with the changes in environment.json)
Python        {python} on {platform}; environment.json lists all packages

config.yml    all settings        results/   accuracies (CSV)      report/       tables, figures, HTML
plan.json     all jobs            metrics/   logs of the training  checkpoints/  models (safetensors)
jobs/         scripts and logs

To check the files:          sha256sum --check --quiet {checksums}
To evaluate a model:         cd code; python -m anml evaluate -m ../checkpoints/STEP --classes 10
To run it again:             cd code; python launch_train.py -c ../config.yml --project again --cluster local
"""


def archive_mode(target: Path) -> str:
    """Return how tarfile opens an archive of that name. Raises ConfigError for other names than of archives."""
    if target.suffix not in _COMPRESSIONS:
        message = f"{target}: the name of an archive ends in .tar, .tar.gz, .tgz or .tar.xz"
        raise ConfigError(message)
    return f"w:{_COMPRESSIONS[target.suffix]}"


def write_archive(experiment: Experiment, target: Path, all_models: bool = False) -> int:
    """Write an archive and return its number of files. Training state, caches and W&B's files are left out.

    all_models: the models of all evaluated checkpoints, else those of the last one.
    """
    sums = ""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        new = Path(folder) / target.name
        with tarfile.open(new, archive_mode(target)) as archive:  # type: ignore[call-overload]
            for file in sorted(_files(experiment, all_models)):
                name = file.relative_to(experiment.root).as_posix()
                # Read once: what a job writes meanwhile cannot part a file from its checksum.
                content = file.read_bytes()
                sums += _add(archive, experiment, name, content, file.stat().st_mtime, file.stat().st_mode)
            sums += _add(archive, experiment, "README.txt", _readme(experiment).encode())
            _add(archive, experiment, CHECKSUMS, sums.encode())
        new.replace(target)
    return sums.count("\n")


def _add(
    archive: tarfile.TarFile, experiment: Experiment, name: str, content: bytes, time: float = 0, mode: int = 0o644
) -> str:
    """Add a file, of nobody in particular, and return its line among the checksums."""
    member = tarfile.TarInfo(str(PurePosixPath(experiment.group, name)))
    member.size, member.mtime, member.mode = len(content), int(time), mode & 0o777
    archive.addfile(member, io.BytesIO(content))
    return f"{hashlib.sha256(content).hexdigest()}  {name}\n"


def _files(experiment: Experiment, all_models: bool) -> Iterator[Path]:
    for path in [*(experiment.root / part for part in _PARTS), *experiment.root.glob("code-*")]:
        files = path.rglob("*") if path.is_dir() else [path]
        yield from (file for file in files if file.is_file() and "__pycache__" not in file.parts)
    config = load_experiment_config(experiment.config_file).config
    for training in config.trainings:
        for step in config.checkpoint_steps if all_models else config.checkpoint_steps[-1:]:
            yield from experiment.checkpoint(step, training.tag).glob("model.*")
    for name in config.added_checkpoints:
        yield from experiment.checkpoints(name).rglob("model.*")


def _readme(experiment: Experiment) -> str:
    facts: dict[str, Any] = dict.fromkeys(("launched", "git_commit", "python", "platform"), "unknown")
    facts |= read_json(experiment.environment_file)
    command = shlex.join(facts.get("command_line", ()))
    names = {"project": experiment.project, "group": experiment.group, "command": command, "checksums": CHECKSUMS}
    return _README.format(**(facts | names))
