"""`python -m anml download DATASET`: fetches and converts a data set ahead of time, for nodes without a connection."""

import argparse
from collections.abc import Sequence

from anml.commands.arguments import EXIT_DONE, positive
from anml.config.dataset_facts import DATASETS


def main(arguments: Sequence[str]) -> int:
    """Make the array files that jobs will load."""
    parser = argparse.ArgumentParser(prog="python -m anml download", description=__doc__, allow_abbrev=False)
    parser.add_argument("dataset", choices=sorted(DATASETS))
    parser.add_argument("--data-path", metavar="DIR", help="a local copy to convert instead of downloading")
    parser.add_argument(
        "--im-size", metavar="PIXELS", type=positive, help="height and width in pixels (default: the data set's usual)"
    )
    options = parser.parse_args(arguments)
    from anml.data.load import array_file

    size = options.im_size or DATASETS[options.dataset].default_size
    for split in ("train", "eval"):
        print(array_file(options.dataset, split, size, options.data_path))
    return EXIT_DONE
