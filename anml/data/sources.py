"""Downloads with a progress bar and a checksum, once per machine."""

import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from anml.config.evaluation import DataRequest
from anml.config.image_folder import is_image, list_classes
from anml.errors import DataError


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


# A folder, a tar or a zip with folders of images: lists them by class and reads them.

T = TypeVar("T")

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".zip")
# A flipped byte also shows as another compression method, a password or a stream that does not inflate.
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError,
           NotImplementedError, RuntimeError, ValueError)  # fmt: skip


def find_source(folders: list[Path], names: list[str], archives_only: bool = False) -> Path | None:
    """Return the first folder or archive of one of these names (case ignored) in one of these folders, if any."""
    suffixes = ARCHIVE_SUFFIXES if archives_only else ("", *ARCHIVE_SUFFIXES)
    known = [name + suffix for name in names for suffix in suffixes]
    wanted = {name.lower(): place for place, name in enumerate(known)}
    for folder in folders:
        there = {path: wanted.get(path.name.lower()) for path in folder.iterdir()} if folder.is_dir() else {}
        found = {path: place for path, place in there.items() if place is not None}
        if found:
            return min(found, key=lambda path: (found[path], path.name))
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
    """Yield (place, path, content) of the images wanted, one after the other, in whatever order is quickest.

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
            # In order of the file: to go back in a compressed tar is to read it anew.
            while member := _reading(source, archive.next):
                if member.name in places:
                    yield places[member.name], member.name, _reading(source, lambda m=member: _content(archive, m))


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return b"" if stream is None else stream.read()


def _reading(source: Path, read: Callable[[], T]) -> T:
    """Return what `read` does, with damage told as a DataError."""
    try:
        return read()
    except _DAMAGE as error:
        message = f"{source}: damaged or unreadable ({error}). Delete it and fetch it again."
        raise DataError(message) from error
