"""One parser for every command: `anml COMMAND`, `python -m anml COMMAND` and the scripts beside the package.

A command is a line of GROUPS and two functions in the module which that line names: `<command>_arguments(parser)` adds
its arguments, if it has any; `<command>(options)` does the work and returns the exit code, or nothing where it is 0.
The scripts' arguments are in arguments.py: their modules are slow to import, and --help must answer at once.
"""

import argparse
import sys
from collections import namedtuple
from collections.abc import Callable, Sequence
from importlib import import_module

from anml import __version__
from anml.cli import arguments
from anml.cli.arguments import EXIT_DONE, EXIT_FAILED, EXIT_USAGE
from anml.errors import AnmlError, ConfigError, missing_package

VERSION = f"anml {__version__}"
Command = namedtuple("Command", "module help example")
GROUPS = {
    "Experiments": {
        "launch": Command("launch", "train and evaluate: plan the jobs, make the experiment folder, submit",
                          "launch -c quickstart.yml --project demo --cluster local"),
        "add": Command("launch", "add flavors, larger sweeps, seeds or other checkpoints",
                       "add demo/GROUP --set seeds=[1,2,3]"),
        "status": Command("status", "show what ran, what runs, what failed and why", "status demo/GROUP --watch"),
        "logs": Command("logs", "print what the jobs have written", "logs demo/GROUP train-step-000500 -f"),
        "usage": Command("usage", "show memory, time and GPUs: asked for, used, enough", "usage demo/GROUP"),
        "retry": Command("status", "submit again what failed or never ran", "retry demo/GROUP"),
        "cancel": Command("status", "end the jobs of an experiment", "cancel demo/GROUP"),
        "ls": Command("experiments", "list experiments and what became of them", "ls demo"),
        "clean": Command("experiments", "show what takes space for nothing, and delete it if told to",
                         "clean demo --only checkpoints"),
    },
    "Results": {
        "report": Command("report", "write the report of an experiment again", "report demo/GROUP"),
        "compare": Command("report", "write a comparison of experiments", "compare demo --flavor olft"),
        "export": Command("report", "write a checkpoint to share, with a card of its origin",
                          "export demo/GROUP my-model --half"),
        "archive": Command("report", "pack what a paper's appendix needs into one file, with checksums",
                           "archive demo/GROUP appendix.tar.gz"),
        "sync": Command("report", "send the W&B runs that were recorded offline", "sync demo/GROUP"),
    },
    "By hand": {
        "train": Command("train", "run one training, or continue it from its last checkpoint",
                         "train -c quickstart.yml --run-dir my-run"),
        "evaluate": Command("evaluate", "evaluate a trained model on classes it has never seen",
                            "evaluate -m my-model --classes 10 --lr 0.001"),
    },
    "Set up": {
        "config": Command("config", "show a config with the origin of each value, or how two differ",
                          "config show train-omni-anml.yml"),
        "clusters": Command("setup", "list the cluster profiles, or check one", "clusters check local"),
        "shell": Command("setup", "open a shell where jobs run, set up as they are", "shell dggpu"),
        "selftest": Command("setup", "prove on this machine: engines exact, trainings repeat and resume, speed, memory",
                            "selftest --device cuda --json selftest.json"),
        "download": Command("setup", "fetch and convert a data set ahead of time", "download omniglot"),
        "completion": Command("main", "print a script that completes commands in bash and zsh",
                              'completion  (put into ~/.bashrc: eval "$(anml completion)")'),
    },
    "": {
        "check-config": Command("check_config", "check a config on standard input against model and data", ""),
        "requeue-job": Command("report", "requeue a job that the kernel has killed, with more memory", ""),
        "report-job": Command("report", "run the report job of an experiment", ""),
    },
}  # fmt: skip
COMMANDS = {name: command for commands in GROUPS.values() for name, command in commands.items()}


def main(words: Sequence[str], program: str = "python -m anml") -> int:
    """Run the command that the first word names, and return its exit code.

    program: what the user typed before the words; a script (`.py`) stands for one command.
    """
    if not words or words[0] in ("-h", "--help"):
        print(_usage(program))
        return EXIT_DONE if words else EXIT_USAGE
    name, *rest = words
    if name == "--version":
        print(VERSION)
        return EXIT_DONE
    if name not in COMMANDS:
        from anml.config.binding import nearest

        print(f"unknown command {name!r}{nearest(name, COMMANDS)}\n\n{_usage(program)}", file=sys.stderr)
        return EXIT_USAGE
    is_script = program.endswith(".py")
    parser = make_parser(name, program if is_script else f"{program} {name}")
    options, unknown = parser.parse_known_args(rest)
    if unknown and "sbatch_options" not in options:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    options.sbatch_options = unknown
    options.command_line = [program, *rest] if is_script else ["-m", "anml", *words]
    if name == "launch" or "experiment" in options:
        from anml.cli.remote import run_elsewhere

        if (code := run_elsewhere(name, options, rest)) is not None:
            return code
    return _function(name, "")(options) or EXIT_DONE


def make_parser(name: str, program: str = "") -> argparse.ArgumentParser:
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(
        prog=program or f"python -m anml {name}",
        description=f"{command.help[0].upper()}{command.help[1:]}.",
        epilog=f"Example: anml {command.example}" if command.example else None,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=VERSION)
    add_arguments = getattr(arguments, f"{name}_arguments", None) or _function(name, "_arguments")
    add_arguments(parser)
    return parser


def _function(name: str, ending: str) -> Callable[..., int | None]:
    module, function = import_module(f"anml.cli.{COMMANDS[name].module}"), name.replace("-", "_") + ending
    return getattr(module, function, lambda parser: None) if ending else getattr(module, function)


def run_command(main: Callable[[Sequence[str]], int]) -> int:
    """Run a command and return its exit code: 0 done, 2 the input is wrong, 1 anything else."""
    try:
        return main(sys.argv[1:])
    except ConfigError as error:
        head = f"{len(error.problems)} problems:\n" if len(error.problems) > 1 else ""
        print(f"{head}{error}", file=sys.stderr)
        return EXIT_USAGE
    except AnmlError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
    except ModuleNotFoundError as error:
        if not (message := missing_package(error)):
            raise
        print(f"error: {message}", file=sys.stderr)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # By its name: most commands do not import torch.
            raise
        message = f"error: the GPU's memory is too small: {error}".splitlines()[0]
        print(f"{message}\nAsk for a GPU with more memory, or for none (device: cpu).", file=sys.stderr)
    except BrokenPipeError:
        pass
    except OSError as error:
        # A full disk or a folder without permission: the message says enough, and a traceback would hide it.
        print(f"error: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
    return EXIT_FAILED


def _usage(program: str) -> str:
    lines = [f"usage: {program} COMMAND ..."]
    for title, commands in GROUPS.items():
        if title:
            lines += ["", f"{title}:"]
            lines += [f"  {name:10} {c.help}\n{'':13}{program} {c.example}" for name, c in commands.items()]
    return "\n".join([*lines, "", "Each command has its own --help; --version prints the version."])


_COMPLETION = """\
type compdef >/dev/null 2>&1 && autoload -U +X bashcompinit && bashcompinit
_anml() {
    local words=""
    if [ "$COMP_CWORD" = 1 ]; then
        words="%s"
    elif [[ "${COMP_WORDS[COMP_CWORD]}" == -* ]]; then
        case "${COMP_WORDS[1]}" in
%s
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _anml anml"""


def completion(_: argparse.Namespace) -> None:
    names = [name for title, commands in GROUPS.items() if title for name in commands]
    cases = []
    for name in names:
        visible = [action for action in make_parser(name)._actions if action.help != argparse.SUPPRESS]
        flags = " ".join(flag for action in visible for flag in action.option_strings)
        cases.append(f'            {name}) words="{flags}" ;;')
    print(_COMPLETION % (" ".join(names), "\n".join(cases)))
