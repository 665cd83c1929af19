"""An array stands for the bytes of its images: what replaces them is seen, what is the same is not converted again."""

import os
import pickle
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anml.config.evaluation import DataRequest
from anml.data import array_file, image_folders, load_images, notices_of, omniglot, sources
from anml.data.class_images import write_array
from anml.errors import DataError
from tests.data.test_image_folders import pack

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust the dates of files that have changed just now, so that no test needs to wait."""
    monkeypatch.setattr(sources, "_SETTLED_NS", -(10**12))


def drawing(brightness: int) -> Image.Image:
    pixels = np.full((105, 105), brightness, np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with a Mini-ImageNet of two classes, whose files have the same size whatever they show."""
    for number in range(4):
        path = tmp_path / "data" / "train" / f"n{number % 2}" / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing(40 * number).save(path)
    return tmp_path / "data"


@pytest.fixture
def characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with an Omniglot of one character, which is all that the program expects for once."""
    monkeypatch.setitem(omniglot.ARCHIVES, "train", omniglot.ARCHIVES["train"]._replace(classes=1))
    place = tmp_path / "data" / "images_background" / "Latin" / "character01"
    place.mkdir(parents=True)
    for number in range(20):
        drawing(number).save(place / f"{number:02d}.bmp")
    return tmp_path / "data"


def pickle_of(brightness: int) -> bytes:
    """Return two classes of two images of 28 pixels, of which the first is as bright as this."""
    images = np.stack([np.full((28, 28, 3), level, np.uint8) for level in (brightness, 40, 80, 120)])
    return pickle.dumps({"data": images, "labels": [0, 1, 0, 1]}, 4)


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """A data folder with a Mini-ImageNet in a pickle."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "miniImageNet_category_split_train_phase_train.pickle").write_bytes(pickle_of(0))
    return tmp_path / "data"


def request_of(data_path: Path, size: int = 84) -> DataRequest:
    name = "omniglot" if next(data_path.rglob("images_background*"), None) else "mini-imagenet"
    return DataRequest(name, "train", size, str(data_path), allow_incomplete=True)


def load(data_path: Path) -> torch.Tensor:
    return load_images(request_of(data_path)).images


def in_place(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)


def by_rename(path: Path, content: bytes) -> None:
    new = path.with_name("new")
    new.write_bytes(content)
    shutil.copystat(path, new)
    new.rename(path)


def replace(path: Path, content: bytes, how: Callable[[Path, bytes], None] = in_place) -> None:
    """Replace a file by one of the same name, size and modification time."""
    before = path.stat()
    time.sleep(0.02)  # The clock of a file system ticks every few milliseconds.
    how(path, content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("how", [in_place, by_rename], ids=["in place", "by another file"])
@pytest.mark.parametrize("data", ["folder", "characters"])
def test_an_image_replaced_by_one_of_the_same_name_size_and_date_is_seen(data, how, request):
    data_path = request.getfixturevalue(data)
    before = load(data_path)
    file = min(data_path.rglob("*.bmp"))
    replace(file, file.read_bytes().replace(bytes(105), bytes([255] * 105)), how)
    after = load(data_path)
    assert (before[0, 0] == 0).all()
    assert (after[0, 0] == 255).all()
    assert torch.equal(before[:, 1:], after[:, 1:])


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("name", ["train.zip", "train.tar"])
def test_an_archive_replaced_by_one_of_the_same_name_size_and_date_is_seen(folder, tmp_path, name):
    packed, other = tmp_path / "packed" / name, tmp_path / "other" / name
    for path, swapped in ((packed, False), (other, True)):
        path.parent.mkdir()
        if swapped:
            (folder / "train" / "n0").rename(folder / "train" / "n")
            (folder / "train" / "n1").rename(folder / "train" / "n0")
            (folder / "train" / "n").rename(folder / "train" / "n1")
        pack_bitmaps(folder / "train", path)
    before = load(packed.parent)
    replace(packed, other.read_bytes())
    assert torch.equal(load(packed.parent), before.flip(0))


def pack_bitmaps(source: Path, archive: Path) -> None:
    if archive.suffix == ".tar":
        pack(source, archive, "train")
        return
    with zipfile.ZipFile(archive, "w") as target:
        for file in sorted(source.rglob("*.bmp")):
            target.write(file, file.relative_to(source.parent))


@pytest.mark.usefixtures("trusting")
def test_a_pickle_replaced_by_one_of_the_same_name_size_and_date_is_seen(pickled):
    before = load(pickled)
    (file,) = pickled.iterdir()
    replace(file, pickle_of(255))
    assert (before[0, 0] == 0).all()
    assert (load(pickled)[0, 0] == 255).all()


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("data", ["folder", "pickled"])
def test_images_that_nobody_touched_are_not_read_again(data, request, monkeypatch):
    data_path = request.getfixturevalue(data)
    before = load(data_path)
    for name in ("checksum", "read_images"):
        monkeypatch.setattr(sources, name, lambda *_: pytest.fail("read again"))
    monkeypatch.setattr("anml.data.read_pickle", lambda *_: pytest.fail("read again"))
    assert torch.equal(load(data_path), before)


@pytest.mark.parametrize(("seconds", "is_seen"), [(0, True), (3600, False)])
def test_dates_are_trusted_only_once_they_are_past(folder, monkeypatch, seconds, is_seen):
    """A file may change twice within one tick of a file system's clock."""
    date = time.time_ns() - seconds * 10**9
    monkeypatch.setattr(sources, "_stat", lambda path: (1, 1, 1, date))
    before = load(folder)
    drawing(255).save(min(folder.rglob("*.bmp")))
    assert torch.equal(load(folder), before) is not is_seen


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("data", ["folder", "pickled"])
def test_touched_images_of_the_same_bytes_keep_their_array(data, request, own_cache, monkeypatch):
    data_path = request.getfixturevalue(data)
    load(data_path)
    made = {file: file.stat().st_mtime_ns for file in own_cache.glob("*.npy")}
    for file in (path for path in data_path.rglob("*") if path.is_file()):
        file.touch()
    monkeypatch.setattr("anml.data.read_pickle", lambda *_: pytest.fail("converted again"))
    load(data_path)
    assert {file: file.stat().st_mtime_ns for file in own_cache.glob("*.npy")} == made


@pytest.mark.parametrize("data", ["folder", "characters"])
def test_the_same_images_share_an_array_wherever_they_lie_and_however_packed(data, tmp_path, request):
    data_path = request.getfixturevalue(data)
    source = next(path for path in data_path.iterdir())
    shutil.copytree(data_path, tmp_path / "copy")
    (tmp_path / "packed").mkdir()
    pack_bitmaps(source, tmp_path / "packed" / f"{source.name}.zip")
    places = (data_path, tmp_path / "copy", tmp_path / "packed")
    assert len({array_file(request_of(place)) for place in places}) == 1


def test_the_same_pickle_shares_an_array_wherever_it_lies_and_tells_the_same(pickled, tmp_path):
    shutil.copytree(pickled, tmp_path / "copy")
    requests = [request_of(place) for place in (pickled, tmp_path / "copy")]
    assert len({array_file(request) for request in requests}) == 1
    told = [list(notices_of(request, load_images(request))) for request in requests]
    assert ["28 pixels are enlarged to 84" in notices[0] for notices in told] == [True, True]


def test_a_pickle_is_needed_only_once(pickled):
    before = load(pickled)
    shutil.rmtree(pickled)
    assert torch.equal(load(pickled), before)


def test_another_size_is_another_array_of_the_same_images(folder):
    small, large = (array_file(request_of(folder, size)) for size in (20, 30))
    assert [np.load(file).shape[-1] for file in (small, large)] == [20, 30]


def test_a_cache_of_an_earlier_version_is_left_alone(folder, own_cache):
    array = array_file(request_of(folder))
    old = [own_cache / array.name.replace("-v2.npy", suffix) for suffix in ("-v1.npy", "-v1.txt")]
    for file in old:
        file.write_text("of an earlier version")
    array.unlink()
    load(folder)
    assert {file.read_text() for file in old} == {"of an earlier version"}


@pytest.mark.parametrize("damage", ["", "{", "missing", "a folder"])
def test_a_record_that_cannot_be_used_is_made_again_or_done_without(folder, own_cache, damage):
    before = load(folder)
    (record,) = own_cache.glob("*.json")
    record.unlink()
    if damage == "a folder":
        record.mkdir()
    elif damage != "missing":
        record.write_text(damage)
    assert torch.equal(load(folder), before)


def test_images_that_change_while_they_are_converted_are_told(folder, tmp_path):
    images = image_folders.MINI_IMAGENET.select(request_of(folder), folder / "train")
    before = sources.checksum(folder / "train", images)
    drawing(255).save(min(folder.rglob("*.bmp")))
    with (tmp_path / "array").open("wb") as stream, pytest.raises(DataError, match=r"train: .* changed while"):
        write_array(stream, folder / "train", images, 84, image_folders.decode, before)


def test_an_image_that_is_missing_is_named(folder):
    file = min(folder.rglob("*.bmp"))
    file.unlink()
    file.symlink_to("nowhere")
    with pytest.raises(DataError, match=rf"{file.name}: cannot be read"):
        load(folder)
