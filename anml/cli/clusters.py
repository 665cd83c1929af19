"""`python -m anml clusters`: lists cluster profiles; `clusters check NAME` tells what is wrong with one."""

import argparse
from collections.abc import Sequence

from anml.cli.arguments import EXIT_DONE, EXIT_FAILED
from anml.config.profile import PROFILES, load_profile, profile_names
from anml.jobs.cluster_check import check_cluster


def main(arguments: Sequence[str]) -> int:
    """List profiles, or check one. Exit code 1 when something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m anml clusters", description=__doc__, allow_abbrev=False)
    parser.add_argument("action", nargs="?", choices=["list", "check"], default="list")
    parser.add_argument("name", nargs="?", help="a profile's name, or the path of its file")
    options = parser.parse_args(arguments)
    if options.action == "list":
        for name in profile_names(PROFILES):
            profile = load_profile(name, PROFILES)
            print(f"{name:12} {profile.scheduler}, {profile.device}   ({PROFILES / name}.yml)")
        return EXIT_DONE
    if options.name is None:
        parser.error("check needs the name of a profile")
    good = True
    for finding in check_cluster(load_profile(options.name, PROFILES)):
        print(f"{'ok  ' if finding.ok else 'BAD '} {finding.what}", flush=True)
        good = good and finding.ok
    return EXIT_DONE if good else EXIT_FAILED
