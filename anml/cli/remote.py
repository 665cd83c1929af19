"""Commands for a cluster that a laptop reaches by ssh (`ssh:` in its profile).

The experiment is there, in `SSH_FOLDER/experiments/PROJECT/GROUP`. The same commands run there, with the words typed
here. A launch sends code, config, the config's own parts and the profile to `SSH_FOLDER/launches/PROJECT/GROUP`,
runs `launch` there, and removes that folder. Later commands run out of the experiment's frozen code.

Here, the experiment's folder holds `remote.json` (the profile, and the experiment's name there), and a copy without
checkpoints as of the last launch or report. Commands that read results copy again first, then run here.
"""

import argparse
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anml.atomic import read_json, write_json, write_text
from anml.cli.arguments import EXIT_DONE, EXIT_USAGE
from anml.cli.launch import name_problems
from anml.config.binding import absolute_reference
from anml.config.load import REFERENCE_KEYS
from anml.config.profile import PROFILES, ClusterProfile, load_profile
from anml.config.yaml import KeyPath, Location, Source, dump_yaml, read_yaml
from anml.errors import ConfigError, SubmissionError
from anml.experiment import Experiment
from anml.jobs.launch import ORIGIN, copy_code, describe_environment, experiments_dir, new_group
from anml.jobs.ssh import Login, logged_in
from anml.plugins import is_reference

# Commands that read an experiment and write here, and what each does not need of it. All others run there.
FETCHED_FOR = {
    "report": ("/checkpoints",),
    "sync": ("/checkpoints",),
    "archive": ("training.safetensors",),
    "export": ("training.safetensors",),
}
# Keys below which a value may refer to the user's own code.
_REFERRING = {key for path in REFERENCE_KEYS for key in path} - {"*", "eval", "model_args"}


def run_elsewhere(name: str, options: argparse.Namespace, words: Sequence[str]) -> int | None:
    """Run a command where its experiment is, if that is elsewhere; return its exit code, or None if it is to run here.

    words: as typed, after the command's name. Raises SubmissionError, ConfigError.
    """
    if name == "launch":
        return _launch_elsewhere(options, words)
    folder = experiments_dir(options.experiments_dir) / options.experiment
    experiment = Experiment((folder if folder.is_dir() else Path(options.experiment)).resolve())
    if not experiment.remote_file.is_file():
        return None
    marker = read_json(experiment.remote_file)
    profile, address = ClusterProfile(**marker["cluster"]), marker["experiment"]
    if getattr(options, "config", None):
        message = f"-c {options.config}: stays on this machine; log in to {profile.ssh}, and use `add -c` there"
        raise ConfigError(message)
    with logged_in(profile) as login:
        if name in FETCHED_FOR:
            _fetch(login, address, experiment, FETCHED_FOR[name])
            return None
        there = [address if word == options.experiment else word for word in _without(words, "--experiments-dir")]
        on_terminal = getattr(options, "watch", False) and sys.stdin.isatty() and sys.stdout.isatty()
        return login.run(f"experiments/{address}/code", ["-m", "anml", name, *there], on_terminal=on_terminal)


def _launch_elsewhere(options: argparse.Namespace, words: Sequence[str]) -> int | None:
    """Launch over ssh, if the command line or else the config names a cluster that is reached so."""
    source = read_yaml(options.config)
    keys = source.data if isinstance(source.data, dict) else {}
    cluster, project = options.cluster or keys.get("cluster"), options.project or keys.get("project")
    profile = load_profile(str(cluster), PROFILES) if cluster else None
    if profile is None or profile.ssh is None:
        return None
    experiments = experiments_dir(options.experiments_dir)
    group = options.group or keys.get("group") or new_group(experiments / str(project))
    if problems := name_problems(project, group):
        raise ConfigError(problems)
    experiment = Experiment(experiments / str(project) / str(group))
    if experiment.config_file.exists() and not experiment.remote_file.exists():
        message = f"--group {group}: {experiment.root} is an experiment of this machine; choose another --group"
        raise ConfigError(message)
    with tempfile.TemporaryDirectory() as name:
        _gather(Path(name), source, profile, options)
        with logged_in(profile) as login:
            return _launch(login, Path(name), experiment, options, words)


def _launch(
    login: Login, gathered: Path, experiment: Experiment, options: argparse.Namespace, words: Sequence[str]
) -> int:
    address = f"{experiment.project}/{experiment.group}"
    folder, is_new = f"launches/{address}", not experiment.root.exists()
    decided = ("-c", "--config", "--cluster", "--project", "--group", "--experiments-dir")
    there = [f"{folder}/code/launch_train.py", *_without(words, *decided), "-c", f"{folder}/{_sent_as(options.config)}"]
    there += ["--cluster", f"{folder}/profile.yml", "--project", experiment.project, "--group", experiment.group]
    sent = f"{login.folder}/{folder}"
    login.prepare(sent)
    login.send(gathered, sent)
    if not options.dry_run:
        # Before the launch: whatever becomes of the connection, `status` then finds the experiment.
        cluster = login.profile.model_dump(mode="json")
        write_json(experiment.remote_file, {"experiment": address, "cluster": cluster})
    try:
        code = login.run(".", there, at_the_end=f"rm -rf {shlex.quote(sent)}")
    except SubmissionError as error:
        message = (
            f"{error}. The launch there is taken back, unless it was complete: `python -m anml status {address}` "
            f"tells, and the same command with --group {experiment.group} completes it."
        )
        raise SubmissionError(message) from None
    if code == EXIT_USAGE and is_new and not options.dry_run:
        shutil.rmtree(experiment.root)
    if code == EXIT_DONE and not options.dry_run:
        _fetch(login, address, experiment, FETCHED_FOR["report"])
    return code


def _fetch(login: Login, address: str, experiment: Experiment, without: Sequence[str]) -> None:
    login.fetch(f"{login.folder}/experiments/{address}", experiment.root, ("/.submitting.*", *without))


def _gather(folder: Path, source: Source, profile: ClusterProfile, options: argparse.Namespace) -> None:
    """Put into a folder all that a launch needs there."""
    references = [*_references(source, source.data), *filter(is_reference, [profile.scheduler])]
    for override in options.overrides:
        key, _, value = override.partition("=")
        references += _references(Source(None, {(): Location("--set")}), value, tuple(key.split(".")))
    copy_code(folder / "code", references)
    facts = describe_environment(options.command_line)
    write_json(folder / "code" / ORIGIN.name, {key: facts[key] for key in ("command_line", "git_commit", "git_diff")})
    for file in source.files:  # As they lie here: they include each other by relative paths.
        write_text(folder / _sent_as(file), file.read_text(encoding="utf-8"))
    settings = profile.model_dump(mode="json", exclude={"ssh", "ssh_folder"}, exclude_defaults=True)
    write_text(folder / "profile.yml", dump_yaml(settings))


def _references(source: Source, value: Any, at: KeyPath = ()) -> Iterator[str]:
    """Yield what a config, as it is written, says of the user's own code; files by absolute paths."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in items:
        yield from _references(source, inside, (*at, key))
    if isinstance(value, str) and is_reference(value) and _REFERRING.intersection(at):
        yield absolute_reference(value, source.locate(at))


def _sent_as(file: Path) -> str:
    """Return where a config file is among what is sent."""
    return f"configs{os.path.abspath(file)}"


def _without(words: Sequence[str], *flags: str) -> list[str]:
    """Return words without some options and their values: `-c X`, `-cX`, `--config X`, `--config=X`."""
    kept, is_value = [], False
    for word in words:
        is_flag = word in flags
        if not (is_value or is_flag or word[:2] in flags or word.partition("=")[0] in flags):
            kept.append(word)
        is_value = is_flag and not is_value
    return kept
