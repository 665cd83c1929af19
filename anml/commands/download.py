"""`python -m anml download DATASET`: fetches and converts a data set ahead of time, for nodes without a connection.

ImageNet's relatives cannot be fetched by a program; with --data-path they are converted. See docs/data.md.
"""

import argparse
from collections.abc import Sequence

from anml.commands.arguments import EXIT_DONE, positive
from anml.config.data_request import DataRequest
from anml.config.dataset_facts import DATASETS, IMAGES_FOLDER, canonical_dataset
from anml.errors import ConfigError


def main(arguments: Sequence[str]) -> int:
    """Make the array files that jobs will load."""
    parser = argparse.ArgumentParser(prog="python -m anml download", description=__doc__, allow_abbrev=False)
    parser.add_argument("dataset", choices=sorted(DATASETS), type=canonical_dataset)
    parser.add_argument("--data-path", metavar="DIR", help="a local copy to convert instead of downloading")
    parser.add_argument(
        "--im-size", metavar="PIXELS", type=positive, help="height and width in pixels (default: the data set's usual)"
    )
    options = parser.parse_args(arguments)
    if options.dataset == IMAGES_FOLDER:
        message = (
            f"{IMAGES_FOLDER}: these are your own images: there is nothing to download, and they are converted when an "
            "experiment is launched that names their folder (data_path)"
        )
        raise ConfigError(message)
    from anml.data.load import array_file

    size = options.im_size or DATASETS[options.dataset].default_size
    for split in ("train", "eval"):
        print(array_file(DataRequest(options.dataset, split, size, options.data_path)))
    return EXIT_DONE
