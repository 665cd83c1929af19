"""Converted once, then loaded from one array file; downloads are checked."""

import hashlib
import shutil
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anml.config.evaluation import DataRequest
from anml.data import array_file, load_images, omniglot
from anml.data.sources import fetch
from anml.errors import DataError

ARRAY = "omniglot-train-28px-*.npy"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with one unpacked character, which is all that the program expects for once."""
    monkeypatch.setitem(omniglot.ARCHIVES, "train", omniglot.ARCHIVES["train"]._replace(classes=1))
    folder = tmp_path / "data" / "images_background" / "Latin" / "character01"
    folder.mkdir(parents=True)
    for number in range(20):
        Image.fromarray(np.arange(105 * 105).reshape(105, 105) % (number + 2) > 0).save(folder / f"{number:02d}.png")
    return tmp_path / "data"


def test_the_data_are_needed_only_once(own_cache, source):
    first = load_images(DataRequest("omniglot", "train", 28, str(source)))
    shutil.rmtree(source)
    assert torch.equal(load_images(DataRequest("omniglot", "train", 28, str(source))).images, first.images)


def test_a_relative_data_path_is_not_another_ones(own_cache, source, tmp_path, monkeypatch):
    load_images(DataRequest("omniglot", "train", 28, str(source)))
    monkeypatch.chdir(tmp_path)
    load_images(DataRequest("omniglot", "train", 28, "data"))
    assert len(list(own_cache.glob(ARRAY))) == 1
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(DataError, match="no omniglot here"):
        load_images(DataRequest("omniglot", "train", 28, "data"))


def test_ten_at_once_all_get_the_whole_array(own_cache, source):
    start = threading.Barrier(10)

    def load(_: int) -> torch.Tensor:
        start.wait()
        return load_images(DataRequest("omniglot", "train", 28, str(source))).images

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(load, range(10)))
    assert all(torch.equal(images, found[0]) for images in found)
    assert sorted(path.suffix for path in own_cache.iterdir()) == [".json", ".npy"]


def test_an_array_survives_its_cache(own_cache, source):
    images = load_images(DataRequest("omniglot", "train", 28, str(source))).images
    next(own_cache.glob(ARRAY)).write_bytes(b"")
    assert images.float().mean() > 1


def test_others_may_read_the_cache(own_cache, source):
    assert array_file(DataRequest("omniglot", "train", 28, str(source))).stat().st_mode & 0o777 == 0o644


def test_a_cache_that_cannot_be_written_is_told(own_cache, source):
    own_cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match="Set ANML_CACHE to a folder"):
        load_images(DataRequest("omniglot", "train", 28, str(source)))


def test_glyphs_do_not_depend_on_a_data_path():
    names = {array_file(DataRequest("glyphs", "eval", 28, path)).name for path in (None, "somewhere")}
    assert len(names) == 1


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A web server on this machine with one file."""
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "data.zip").write_bytes(b"content")
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=tmp_path / "mirror")) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setenv("ANML_MIRROR", f"http://127.0.0.1:{server.server_port}/")
        yield
        server.shutdown()
        thread.join()


def test_a_mirror_replaces_the_official_address(mirror, tmp_path):
    found = fetch("data.zip", "https://official.invalid", "9a0364b9e99bb480dd25e1f0284c8555", tmp_path / "downloads")
    assert found.read_bytes() == b"content"


def test_what_was_downloaded_is_needed_only_once(own_cache, source, mirror, tmp_path, monkeypatch):
    archive = tmp_path / "mirror" / "images_background.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for file in source.rglob("*.png"):
            target.write(file, file.relative_to(source))
    md5 = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(omniglot.ARCHIVES, "train", omniglot.ARCHIVES["train"]._replace(md5=md5))
    downloaded = load_images(DataRequest("omniglot", "train", 28)).images
    archive.unlink()
    shutil.rmtree(own_cache / "downloads")
    assert torch.equal(load_images(DataRequest("omniglot", "train", 28)).images, downloaded)
    assert array_file(DataRequest("omniglot", "train", 28, str(source))) == next(own_cache.glob(ARRAY))


def test_a_download_with_another_checksum_is_refused(mirror, tmp_path):
    with pytest.raises(DataError, match=r"cannot download .*data\.zip"):
        fetch("data.zip", "https://official.invalid", "0" * 32, tmp_path / "downloads")
    assert not (tmp_path / "downloads" / "data.zip").exists()


def test_an_address_that_does_not_answer_names_the_ways_out(tmp_path, monkeypatch):
    monkeypatch.setenv("ANML_MIRROR", "http://127.0.0.1:9")
    with pytest.raises(DataError, match="--data-path"):
        fetch("data.zip", "https://official.invalid", "0" * 32, tmp_path)


@pytest.mark.parametrize("copied", [2**40, 0], ids=["in memory", "in its file"])
def test_held_out_classes_are_cut_off_the_array_of_the_training(copied: int, monkeypatch) -> None:
    monkeypatch.setattr("anml.data._COPIED_BYTES", copied)
    training = DataRequest("glyphs", "train", 28)
    held_out = training._replace(first_class=961)
    assert array_file(held_out) == array_file(training)
    found, whole = load_images(held_out), load_images(training)
    assert (found.name, found.num_classes) == ("glyphs-validation", 3)
    every = torch.arange(3).repeat_interleave(20), torch.arange(20).repeat(3)
    assert torch.equal(found.batch(*every)[0], whole.batch(every[0] + 961, every[1])[0])
    assert torch.equal(found.first_examples(1, 4).images, whole.images[961:, 1:4])
