"""`clusters` and `download`: what to see to before a launch."""

import argparse

from anml.cli.arguments import EXIT_DONE, EXIT_FAILED, add_data_path_argument, positive, print_notices
from anml.config.evaluation import DataRequest, data_path_or_default
from anml.config.facts import DATASETS, canonical_dataset
from anml.config.profile import PROFILES, load_profile, profile_names
from anml.errors import ConfigError


def clusters_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=["list", "check"], default="list")
    parser.add_argument("name", nargs="?", help="a profile's name, or the path of its file")


def clusters(options: argparse.Namespace) -> int:
    """List profiles, or check one. Exit code 1 where the check finds something wrong."""
    if options.action == "list":
        for name in profile_names(PROFILES):
            profile = load_profile(name, PROFILES)
            print(f"{name:12} {profile.scheduler}, {profile.device}   ({PROFILES / name}.yml)")
        return EXIT_DONE
    if options.name is None:
        message = f"clusters check: give the name of a profile: {', '.join(profile_names(PROFILES))}"
        raise ConfigError(message)
    from anml.jobs.cluster_check import check_cluster

    code = EXIT_DONE
    for finding in check_cluster(load_profile(options.name, PROFILES)):
        print(f"{'ok  ' if finding.ok else 'BAD '} {finding.what}", flush=True)
        code = code if finding.ok else EXIT_FAILED
    return code


def download_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"No program can download ImageNet: copies of it are converted (docs/data.md). {parser.epilog}"
    parser.add_argument("dataset", choices=sorted(DATASETS), type=canonical_dataset)
    add_data_path_argument(parser)
    parser.add_argument("--im-size", metavar="PIXELS", type=positive, help="height and width (default: the usual one)")


def download(options: argparse.Namespace) -> None:
    """Make the array files that jobs will load."""
    if DATASETS[options.dataset].needs_counting:
        message = f"{options.dataset}: your own images (data_path) are converted when an experiment is launched"
        raise ConfigError(message)
    from anml.data import array_file

    size = options.im_size or DATASETS[options.dataset].default_size
    data_path = data_path_or_default(options.data_path)
    if data_path:
        print_notices([f"data path (--data-path or ANML_DATA): {data_path}"])
    for split in ("train", "eval"):
        print(f"{split:5} {array_file(DataRequest(options.dataset, split, size, data_path))}")
