"""Where images come from: downloads; folders, tars and zips of images; and the checksum of the images they hold.

The checksum is of the images' bytes, and is taken again only when one of the files was touched.
"""

import contextlib
import hashlib
import itertools
import lzma
import os
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from anml.atomic import read_json, write_json
from anml.config.evaluation import DataRequest
from anml.config.image_folder import is_image, list_classes
from anml.errors import DataError

T = TypeVar("T")
# Paths inside a source, class by class.
Images = Sequence[Sequence[str]]

# A file server answers many requests at a time.
_THREADS = 16
# Clocks of file systems are coarse: a file that has just changed may change again and keep its dates.
_SETTLED_NS = 2_000_000_000


class ImageFiles(NamedTuple):
    """How the images of a data set are found, chosen and decoded where they are files in folders or archives.

    find: returns the folder or archive of a request. select: returns the paths inside it, class by class, equally many
    of each. decode: makes uint8 [channels, size, size] of a file's content, the size, and what to call it in errors.
    beside: returns other files that the choice depends on. check: refuses an array of this shape, converted earlier.
    All raise DataError.
    """

    find: Callable[[DataRequest], Path]
    select: Callable[[DataRequest, Path], list[list[str]]]
    decode: Callable[[bytes, int, str], bytes]
    beside: Callable[[Path], list[Path]] = lambda source: []
    check: Callable[[DataRequest, Sequence[int]], None] = lambda request, shape: None


def fetch(file: str, base_url: str, md5: str, folder: Path) -> Path:
    """Download one file unless a good copy is there. ANML_MIRROR replaces the official address.

    Raises DataError when it cannot be had, naming the ways out.
    """
    import pooch  # Here, not above: reading a local copy needs no download library.

    base = os.environ.get("ANML_MIRROR", base_url).rstrip("/")
    try:
        path = pooch.retrieve(f"{base}/{file}", f"md5:{md5}", fname=file, path=folder, progressbar=True)
    except Exception as error:
        message = f"cannot download {base}/{file}: {error}\nWays out: give --data-path (or ANML_DATA) a folder that "
        message += f"holds {file}; set ANML_MIRROR to a mirror's address on a closed network; or run "
        message += "`python -m anml download` on a machine with a connection."
        raise DataError(message) from error
    return Path(path)


ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".zip")
# A flipped byte also looks like another compression method, a password or a stream that does not inflate.
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError,
           NotImplementedError, RuntimeError, ValueError)  # fmt: skip


def find_source(folders: list[Path], names: list[str], archives_only: bool = False) -> Path | None:
    """Return the first folder or archive of one of these names (case ignored) in one of these folders, if any."""
    suffixes = ARCHIVE_SUFFIXES if archives_only else ("", *ARCHIVE_SUFFIXES)
    wanted = [f"{name}{suffix}".lower() for name in names for suffix in suffixes]
    for folder in folders:
        paths = folder.iterdir() if folder.is_dir() else ()
        matching = [path for path in paths if path.name.lower() in wanted and (path.suffix or path.is_dir())]
        if matching:
            return min(matching, key=lambda path: (wanted.index(path.name.lower()), path.name))
    return None


def list_images(source: Path) -> dict[str, list[str]]:
    """Return the images of each class, by the class's folder; a path is relative to the source. Everything is sorted.

    Folders around all classes, such as the one an archive was made of, are no part of a class's name.
    Raises DataError when an archive is damaged.
    """
    if source.is_dir():
        classes = {name: [f"{name}/{file}" for file in files] for name, files in list_classes(source).items()}
    else:
        classes = {}
        for name in sorted(_reading(source, lambda: _members(source))):
            if is_image(name.rpartition("/")[2]) and "/" in name and "__MACOSX" not in name:
                classes.setdefault(os.path.normpath(os.path.dirname(name)), []).append(name)  # It may begin with `./`.
    around = os.path.commonpath([os.path.dirname(name) for name in classes]) if classes else ""
    return {name[len(around) :].lstrip("/"): images for name, images in sorted(classes.items())}


def _members(source: Path) -> list[str]:
    if source.suffix == ".zip":
        with zipfile.ZipFile(source) as archive:
            return archive.namelist()
    with tarfile.open(source) as archive:
        return [member.name for member in archive if member.isfile()]


def read_images(source: Path, places: Mapping[str, int]) -> Iterator[tuple[int, str, bytes]]:
    """Yield (place, path, content) of the images wanted, one after the other, in the quickest order.

    places: which images, by path, and what to call them. Raises DataError.
    """
    if source.is_dir():
        for name, place in places.items():
            yield place, name, _reading(source / name, (source / name).read_bytes)
    elif source.suffix == ".zip":
        with _reading(source, lambda: zipfile.ZipFile(source)) as archive:
            for name, place in places.items():
                yield place, name, _reading(source, lambda name=name: archive.read(name))
    else:
        with _reading(source, lambda: tarfile.open(source)) as archive:
            # In the order of the file: a step back in a compressed tar means reading it again.
            while member := _reading(source, archive.next):
                if member.name in places:
                    yield places[member.name], member.name, _reading(source, lambda m=member: _content(archive, m))


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return b"" if stream is None else stream.read()


def _reading(source: Path, read: Callable[[], T]) -> T:
    """Return what `read` returns. Raises DataError where the source is damaged."""
    try:
        return read()
    except _DAMAGE as error:
        message = f"{source}: damaged or unreadable ({error}). Delete it and fetch it again."
        raise DataError(message) from error


def read_record(path: Path) -> dict[str, Any]:
    """Return what was noted of the images of a folder; nothing where that cannot be read: it is made again."""
    try:
        return read_json(path)
    except OSError:
        return {}


def identify(source: Path, select: Callable[[], Images], record: Path, beside: Sequence[Path] = ()) -> str:
    """Return the checksum of the images that `select` chooses, out of `record` while no file has changed.

    source: a folder, of which each image is looked at, or an archive, which is one file. beside: other files that
    `select` reads. A file has changed when its size, dates or inode have. No program can set the date of its last
    change (ctime), so a replacement shows even if it has the original's name, size and modification time. Raises
    DataError.
    """
    images = select() if source.is_dir() else None
    now = time.time_ns()
    stats = _each(source, images, _stat) if images else [_stat(str(source))]
    stats += [_stat(str(path)) for path in beside]
    files = hashlib.sha256(repr((source.name, images, stats)).encode()).hexdigest()
    last = read_record(record)
    if last.get("files") == files:
        return last["contents"]
    contents = checksum(source, images or select())
    is_settled = max(changed for *_, changed in stats) < now - _SETTLED_NS
    kept = last if last.get("contents") == contents else {}  # What else was noted of the same images.
    with contextlib.suppress(OSError):  # The cache may be read-only.
        write_json(record, kept | {"files": files if is_settled else None, "contents": contents})
    return contents


def fingerprint(path: Path | None) -> str | None:
    """Return a checksum of the sizes, dates and inodes of a file or of all files below a folder. Raises DataError."""
    if path is None:
        return None
    files = sorted(f"{folder}/{name}" for folder, _, names in os.walk(path) for name in names) or [str(path)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return hashlib.sha256(repr(list(zip(files, pool.map(_stat, files), strict=True))).encode()).hexdigest()


def checksum(source: Path, images: Images) -> str:
    """Return the checksum of images: the same wherever they lie, in a folder or in an archive. Raises DataError."""
    if source.is_dir():
        return joined(images, _each(source, images, _digest))
    places = places_of(images)
    digests = {place: digest(content) for place, _, content in read_images(source, places)}
    return joined(images, (digests[place] for place in sorted(digests)))


def places_of(images: Images) -> dict[str, int]:
    """Return the position of each image among all, by its path."""
    return {name: place for place, name in enumerate(itertools.chain.from_iterable(images))}


def joined(images: Images, digests: Iterable[bytes]) -> str:
    """Return the checksum of images from those of each, in their order."""
    whole = hashlib.sha256(repr([len(files) for files in images]).encode())
    for each in digests:
        whole.update(each)
    return whole.hexdigest()[:16]


def digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _each(source: Path, images: Images, read: Callable[[str], T]) -> list[T]:
    """Return what `read` makes of the path of each image; classes are read side by side."""
    with ThreadPoolExecutor(_THREADS) as pool:
        classes = pool.map(lambda files: [read(f"{source}/{name}") for name in files], images)
        return list(itertools.chain.from_iterable(classes))


def _stat(path: str) -> tuple[int, int, int, int]:
    stat = _read_file(path, os.stat)
    return stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns


def _digest(path: str) -> bytes:
    return digest(_read_file(path, lambda path: Path(path).read_bytes()))


def _read_file(path: str, read: Callable[[str], T]) -> T:
    """Return what `read` makes of the path of an image. Raises DataError."""
    try:
        return read(path)
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror}). Put it back or remove the link to it."
        raise DataError(message) from error
