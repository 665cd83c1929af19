"""Downloads with a progress bar and a checksum, once per machine."""

import os
from pathlib import Path

from anml.errors import DataError


def cache_dir() -> Path:
    """Return the folder for downloads and converted arrays: ANML_CACHE, or the user's cache folder."""
    chosen = os.environ.get("ANML_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "anml"


def fetch(file: str, base_url: str, md5: str, folder: Path) -> Path:
    """Download one file unless a good copy is there. ANML_MIRROR replaces the official address.

    Raises DataError when it cannot be had, naming the ways out.
    """
    import pooch  # Here, not above: reading a local copy needs no download library.

    base = os.environ.get("ANML_MIRROR", base_url).rstrip("/")
    try:
        path = pooch.retrieve(f"{base}/{file}", f"md5:{md5}", fname=file, path=folder, progressbar=True)
    except Exception as error:
        message = (
            f"cannot download {base}/{file}: {error}\n"
            f"Ways out: give --data-path (or ANML_DATA) a folder that holds {file}; set ANML_MIRROR to a mirror's "
            f"address on a closed network; or run `python -m anml download` on a machine with a connection."
        )
        raise DataError(message) from error
    return Path(path)
