"""Typed, frozen experiment configs out of strict YAML, and where the shipped ones are. Nothing here imports torch."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped(name: str) -> Path:
    """Return the folder `configs` or `slurm`: inside an installed package, beside the package in a checkout."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def cache_dir() -> Path:
    """Return the folder for downloads and converted arrays: ANML_CACHE, or the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "anml"
    return Path(os.environ.get("ANML_CACHE") or default).expanduser()
