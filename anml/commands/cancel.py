"""`python -m anml cancel PROJECT/GROUP`: ends an experiment's jobs, and only those."""

import argparse
from collections.abc import Sequence

from anml.commands.address import add_address_arguments, find_experiment
from anml.commands.arguments import EXIT_DONE
from anml.launch import load_launch
from anml.schedulers.select import make_scheduler


def main(arguments: Sequence[str]) -> int:
    """Cancel what waits or runs."""
    parser = argparse.ArgumentParser(prog="python -m anml cancel", description=__doc__, allow_abbrev=False)
    add_address_arguments(parser)
    launch = load_launch(find_experiment(parser.parse_args(arguments)))
    scheduler = make_scheduler(launch.experiment, launch.profile, launch.wandb_mode)
    states = {name: list(tasks.values()) for name, tasks in scheduler.states().items()}
    live = {name: [state.id for state in tasks if state.is_live] for name, tasks in states.items()}
    names = [name for name, ids in live.items() if ids]
    scheduler.cancel(sorted({id_ for ids in live.values() for id_ in ids}))
    print(f"Cancelled: {', '.join(names)}" if names else "Nothing waits or runs.")
    return EXIT_DONE
