"""Which images a data set holds, by their bytes: a checksum, taken again only when one of the files was touched."""

import contextlib
import hashlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from anml.atomic import read_json, write_json
from anml.data.sources import read_images
from anml.errors import DataError

T = TypeVar("T")
# Paths inside a source, class by class.
Images = Sequence[Sequence[str]]

# A file server answers many questions in the time of one.
_THREADS = 16
# As coarse as clocks of file systems are: a file that has just changed may change again without showing it.
_SETTLED_NS = 2_000_000_000


def identify(source: Path, select: Callable[[], Images], record: Path, beside: Sequence[Path] = ()) -> str:
    """Return the checksum of the images that `select` chooses, out of `record` while no file has changed.

    source: a folder, of which each image is looked at, or an archive, which is one file. beside: other files that
    `select` reads. A file has changed when its size, dates or inode have. Nobody can set the date of its last change
    (ctime): a replacement shows even if it has the name, size and modification time of the original. Raises DataError.
    """
    images = select() if source.is_dir() else None
    now = time.time_ns()
    stats = _each(source, images, _stat) if images else [_stat(str(source))]
    stats += [_stat(str(path)) for path in beside]
    files = hashlib.sha256(repr((source.name, images, stats)).encode()).hexdigest()
    known = read_json(record) or {}
    if known.get("files") == files:
        return known["contents"]
    contents = checksum(source, images or select())
    is_settled = max(changed for *_, changed in stats) < now - _SETTLED_NS
    with contextlib.suppress(OSError):  # The cache may be somebody else's to write.
        write_json(record, {"files": files if is_settled else None, "contents": contents})
    return contents


def fingerprint(path: Path | None) -> str | None:
    """Return a checksum of the sizes, dates and inodes of a file or of all files below a folder. Raises DataError."""
    if path is None:
        return None
    files = sorted(f"{folder}/{name}" for folder, _, names in os.walk(path) for name in names) or [str(path)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return hashlib.sha256(repr(list(zip(files, pool.map(_stat, files), strict=True))).encode()).hexdigest()


def recorded(record: Path) -> str | None:
    """Return the checksum that was last taken, whatever has become of the images since."""
    return (read_json(record) or {}).get("contents")


def checksum(source: Path, images: Images) -> str:
    """Return the checksum of images: the same wherever they lie, in a folder or in an archive. Raises DataError."""
    if source.is_dir():
        return joined(images, _each(source, images, _digest))
    places = {name: place for place, name in enumerate(name for files in images for name in files)}
    digests = {place: digest(content) for place, _, content in read_images(source, places)}
    return joined(images, (digests[place] for place in sorted(digests)))


def joined(images: Images, digests: Iterable[bytes]) -> str:
    """Return the checksum of images from those of each, in their order."""
    whole = hashlib.sha256(repr([len(files) for files in images]).encode())
    for each in digests:
        whole.update(each)
    return whole.hexdigest()[:16]


def digest(content: bytes) -> bytes:
    """Return the checksum of one image file."""
    return hashlib.sha256(content).digest()


def _each(source: Path, images: Images, read: Callable[[str], T]) -> list[T]:
    """Return what `read` makes of the path of each image; classes are read side by side."""
    with ThreadPoolExecutor(_THREADS) as pool:
        classes = pool.map(lambda files: [read(f"{source}/{name}") for name in files], images)
        return list(itertools.chain.from_iterable(classes))


def _stat(path: str) -> tuple[int, int, int, int]:
    stat = _reading(path, lambda: os.stat(path))
    return stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns


def _digest(path: str) -> bytes:
    return _reading(path, lambda: digest(Path(path).read_bytes()))


def _reading(path: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror}). Put it back or remove the link to it."
        raise DataError(message) from error
