"""What the command lines share: errors as words, exit codes, and arguments that several of them take."""

import argparse
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from anml import __version__
from anml.config.binding import nearest
from anml.errors import AnmlError, ConfigError, missing_package
from anml.experiment import Experiment
from anml.jobs.launch import experiments_dir

EXIT_DONE, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
VERSION = f"anml {__version__}"


def run_command(main: Callable[[Sequence[str]], int]) -> int:
    """Run a command and return its exit code: 0 done, 2 the input is wrong, 1 anything else."""
    try:
        return main(sys.argv[1:])
    except ConfigError as error:
        count = len(error.problems)
        head = "" if count == 1 else f"{count} problems:\n"
        print(f"{head}{error}", file=sys.stderr)
        return EXIT_USAGE
    except AnmlError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return EXIT_FAILED
    except ModuleNotFoundError as error:
        if not (message := missing_package(error)):
            raise
        print(f"error: {message}", file=sys.stderr)
        return EXIT_FAILED
    except BrokenPipeError:
        return EXIT_FAILED
    except OSError as error:
        # A full disk, a folder without permission: the message has it all, a traceback would only hide it.
        print(f"error: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return EXIT_FAILED


@contextmanager
def collecting(problems: list[str]) -> Iterator[None]:
    """Add the problems of a ConfigError to a list, so that what else is wrong can be found too."""
    try:
        yield
    except ConfigError as error:
        problems.extend(error.problems)


def config_file(text: str) -> Path:
    """Return the path of a config that exists, for argparse."""
    path = Path(text)
    if not path.is_file():
        message = f"no file {text}{_hint(path)}"
        raise argparse.ArgumentTypeError(message)
    return path


def _hint(path: Path) -> str:
    """Return the files that may be meant: those of similar names, else those beside it."""
    import difflib  # Only the mistaken pay for it.

    folder = path if path.is_dir() else path.parent
    beside = sorted(folder.glob("*.yml"))
    known = {file.stem: str(file) for file in [*sorted(Path("configs").rglob("*.yml")), *beside]}
    close = [known[name] for name in difflib.get_close_matches(path.stem, known)]
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; in {folder} there are: {', '.join(file.name for file in beside)}" if beside else ""


def check_output(option: str, *files: Path) -> None:
    """Find out now, not after hours of work, whether files can be written: new ones, or regular ones to be replaced.

    Folders, devices and links are not replaced: a link may lead to any of them. Raises ConfigError.
    """
    for file in files:
        if os.path.lexists(file) and not stat.S_ISREG(os.lstat(file).st_mode):
            message = f"{option} {file}: is a folder, a device or a link, and only files are replaced; name another"
            raise ConfigError(message)
        try:
            folder = next(parent for parent in file.absolute().parents if parent.exists())
            # Named as `write_text` names its temporary files: they must fit, too.
            tempfile.NamedTemporaryFile(dir=folder, prefix=f".{file.name}.").close()
        except OSError as error:
            message = (
                f"{option} {file}: cannot be written ({error.strerror}); name one in a folder that you may write to"
            )
            raise ConfigError(message) from None


def positive(text: str) -> int:
    """Return a whole number of 1 or more, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        message = f"must be a whole number of 1 or more, found {text!r}"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def add_data_path_argument(parser: argparse.ArgumentParser) -> None:
    """Add --data-path, whose default is that of `data_path_or_default`."""
    parser.add_argument("--data-path", metavar="DIR", help="where the data set is (default: ANML_DATA, or download)")


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --version, and --set key=value."""
    parser.add_argument("--version", action="version", version=VERSION)
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides",
        help="override a key of the config, e.g. --set inner_lr=0.05 --set eval.olft.runs=3 (repeatable)",
    )  # fmt: skip


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the scripts of planned jobs pass along (not meant for typing)."""
    group = parser.add_argument_group("set by job scripts")
    group.add_argument("--job", help=argparse.SUPPRESS)
    group.add_argument("--cluster-device", default="auto", help=argparse.SUPPRESS)
    group.add_argument("--min-free-gb", type=float, default=0.0, help=argparse.SUPPRESS)
    group.add_argument("--max-requeues", type=int, default=0, help=argparse.SUPPRESS)


def print_notices(notices: Sequence[str]) -> None:
    """Print what the user should know, apart from the output proper."""
    for notice in notices:
        print(f"note: {notice}", file=sys.stderr)


# Finds the experiment that a user means.


def add_address_arguments(parser: argparse.ArgumentParser) -> None:
    """Add PROJECT/GROUP and --experiments-dir."""
    parser.add_argument("experiment", metavar="PROJECT/GROUP", help="the experiment, or the path of its folder")
    parser.add_argument("--experiments-dir", metavar="DIR", help="where experiments are (default: ANML_EXPERIMENTS)")


def find_experiment(options: argparse.Namespace) -> Experiment:
    """Return the experiment. Raises ConfigError naming those there are."""
    root = experiments_dir(options.experiments_dir)
    found = experiment_at(root, options.experiment)
    if found is None:
        raise ConfigError(unknown_experiment(root, options.experiment))
    return found


def experiment_at(root: Path, address: str) -> Experiment | None:
    """Return the experiment of an address below a folder, or with the path of its own folder."""
    for candidate in (root / address, Path(address)):
        if (candidate / "config.yml").is_file():
            return Experiment(candidate.resolve())
    return None


def unknown_experiment(root: Path, address: str) -> str:
    """Return a sentence that names the experiments there are."""
    known = sorted(f"{c.parent.parent.name}/{c.parent.name}" for c in root.glob("*/*/config.yml"))
    hint = nearest(address, known) or (f"; there are: {', '.join(known[-10:])}" if known else "")
    return f"no experiment {address} in {root}{hint}"
