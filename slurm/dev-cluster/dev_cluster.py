"""A real, private, one-machine Slurm for tests and contributors: `up`, `down`, and ways to make parts of it fail."""

import argparse
import shlex
import sys
from pathlib import Path

from cluster import Cluster
from state import LARGEST_MAX_ARRAY_SIZE, NODES, ClusterError, State, UsageError, default_folder


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 done, 2 the request is wrong or Slurm is not installed, 1 anything else."""
    arguments = parser().parse_args(argv)
    cluster = Cluster(State(arguments.state))
    try:
        return arguments.run(cluster, arguments)
    except (UsageError, ClusterError) as error:
        sys.stderr.write(f"dev_cluster: {error}\n")
        return 2 if isinstance(error, UsageError) else 1


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    top = argparse.ArgumentParser(prog="dev_cluster.py", description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    place = "the cluster's folder (default: $ANML_DEV_CLUSTER, else in the system's temporary folder)"
    common.add_argument("--state", type=Path, default=default_folder(), metavar="DIR", help=place)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, (run, text) in COMMANDS.items():
        command = commands.add_parser(name, parents=[common], help=text, description=text)
        command.set_defaults(run=run)
        if name == "up":
            command.add_argument("--max-array-size", type=array_size, metavar="N", help="MaxArraySize (default: 1001)")
            command.add_argument("--accounting", action="store_true", help="with a database: sacct answers")
        if name in ("stop-node", "start-node"):
            command.add_argument("node", choices=NODES)
        if name == "start-node":
            kept = "its jobs run on: only slurmd had ended"
            command.add_argument("--keep-jobs", action="store_true", help=kept)
    return top


def array_size(text: str) -> int:
    """Read a MaxArraySize that Slurm takes."""
    if not text.isdecimal() or not 1 <= int(text) <= LARGEST_MAX_ARRAY_SIZE:
        message = f"{text!r} is not a whole number from 1 to {LARGEST_MAX_ARRAY_SIZE}"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def up(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """Bring the cluster up."""
    done = cluster.up(arguments.max_array_size, arguments.accounting)
    return say(f"{'up' if done else 'already up'}: export SLURM_CONF={cluster.state.conf}")


def down(cluster: Cluster, _: argparse.Namespace) -> int:
    """Take the cluster down."""
    return say("down" if cluster.down() else "already down")


def status(cluster: Cluster, _: argparse.Namespace) -> int:
    """Say what runs."""
    if not cluster.state.exists:
        say(f"down: nothing in {cluster.state.folder}")
        return 1
    found = {name: cluster.daemon(name) for name in cluster.daemons}
    lines = [f"{name:10} {f'process {process.pid}' if process else 'not running'}" for name, process in found.items()]
    say("\n".join(lines + [f"{node:10} {state}" for node, state in cluster.node_states().items()]))
    return 0 if all(found.values()) else 1


def env(cluster: Cluster, _: argparse.Namespace) -> int:
    """Print what a shell evaluates to use the cluster."""
    if not cluster.state.exists:
        message = f"no dev cluster in {cluster.state.folder}: run `up` first"
        raise ClusterError(message)
    return say(f"export SLURM_CONF={shlex.quote(str(cluster.state.conf))}")


def stop_controller(cluster: Cluster, _: argparse.Namespace) -> int:
    """Stop slurmctld."""
    return say("slurmctld stopped" if cluster.stop_controller() else "slurmctld was not running")


def start_controller(cluster: Cluster, _: argparse.Namespace) -> int:
    """Start slurmctld."""
    return say("slurmctld started" if cluster.start("slurmctld") else "slurmctld already runs")


def stop_node(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """Kill a node."""
    return say(f"{arguments.node} {'killed' if cluster.stop_node(arguments.node) else 'was not running'}")


def start_node(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """Start a node again."""
    started = cluster.start(arguments.node, arguments.keep_jobs)
    return say(f"{arguments.node} {'started' if started else 'already runs'}")


def say(text: str) -> int:
    """Print a line; the exit code of a command that is done."""
    sys.stdout.write(f"{text}\n")
    return 0


COMMANDS = {
    "up": (up, "start the cluster and wait until its nodes are idle"),
    "down": (down, "kill its daemons and jobs and remove its folder"),
    "status": (status, "say what runs; exit code 1 unless all of it does"),
    "env": (env, "print the line a shell evaluates to use it"),
    "stop-controller": (stop_controller, "stop slurmctld, keeping its state"),
    "start-controller": (start_controller, "start slurmctld with the state it left"),
    "stop-node": (stop_node, "kill -9 a node's slurmd and all processes of its jobs"),
    "start-node": (start_node, "start a node again and wait until it is usable"),
}


if __name__ == "__main__":
    sys.exit(main())
