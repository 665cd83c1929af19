"""`python -m anml download DATASET`: fetches and converts a data set ahead of time, for nodes without a connection.

ImageNet's relatives cannot be fetched by a program: copies of them are converted. See docs/data.md.
"""

import argparse
from collections.abc import Sequence

from anml.cli.arguments import EXIT_DONE, add_data_path_argument, positive, print_notices
from anml.config.evaluation import DataRequest, data_path_or_default
from anml.config.facts import DATASETS, canonical_dataset
from anml.errors import ConfigError


def main(arguments: Sequence[str]) -> int:
    """Make the array files that jobs will load."""
    parser = argparse.ArgumentParser(prog="python -m anml download", description=__doc__, allow_abbrev=False)
    parser.add_argument("dataset", choices=sorted(DATASETS), type=canonical_dataset)
    add_data_path_argument(parser)
    parser.add_argument(
        "--im-size", metavar="PIXELS", type=positive, help="height and width in pixels (default: the data set's usual)"
    )
    options = parser.parse_args(arguments)
    if DATASETS[options.dataset].needs_counting:
        message = (
            f"{options.dataset}: these are your own images: there is nothing to download, and they are converted when "
            "an experiment is launched that names their folder (data_path)"
        )
        raise ConfigError(message)
    from anml.data import array_file

    size = options.im_size or DATASETS[options.dataset].default_size
    data_path = data_path_or_default(options.data_path)
    if data_path:
        print_notices([f"data path (--data-path or ANML_DATA): {data_path}"])
    for split in ("train", "eval"):
        print(f"{split:5} {array_file(DataRequest(options.dataset, split, size, data_path))}")
    return EXIT_DONE
