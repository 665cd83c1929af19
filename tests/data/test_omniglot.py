"""Omniglot's conversion, on a small archive of the same make; the real one has its own tests."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anml.config.evaluation import DataRequest
from anml.data import array_file, load_images, omniglot
from anml.errors import DataError

CHARACTERS = ("Latin/character01", "Latin/character02", "Greek/character01")


def drawing(seed: int) -> bytes:
    """Return a 105x105 1-bit PNG with a white background and one black stroke."""
    pixels = np.ones((105, 105), dtype=bool)
    row, column = np.random.default_rng(seed).integers(10, 90, size=2)
    pixels[row : row + 4, :column] = False
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {
        f"images_background/{character}/{number:04d}_{copy:02d}.png": drawing(100 * number + copy)
        for number, character in enumerate(CHARACTERS)
        for copy in range(20)
    }


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def archive(tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zip of three characters, which is how many the program expects for once."""
    monkeypatch.setitem(omniglot.ARCHIVES, "train", omniglot.ARCHIVES["train"]._replace(classes=len(CHARACTERS)))
    path = tmp_path / "images_background.zip"
    write_zip(path, files)
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(name, content)


def convert(source: Path, size: int) -> np.ndarray:
    """Return the array of the training split that lies in a folder, converted or as it was converted before."""
    return np.load(array_file(DataRequest("omniglot", "train", size, str(source.parent))))


def test_strokes_stay_dark_on_white(archive):
    images = convert(archive, 28)
    assert images.dtype == np.uint8
    assert images.shape == (3, 20, 1, 28, 28)
    assert np.median(images) == 255
    assert images.min() < 30


def test_drawings_are_shrunk_as_greyscale_by_lanczos(archive, files):
    names = sorted(files)
    expected = Image.open(io.BytesIO(files[names[0]])).convert("L").resize((28, 28), Image.Resampling.LANCZOS)
    assert np.array_equal(convert(archive, 28)[0, 0, 0], np.asarray(expected))
    assert len(np.unique(np.asarray(expected))) > 2  # Nearest neighbour would know black and white only.


def test_characters_and_drawings_come_in_order_of_their_path(archive, files):
    images = convert(archive, 105)
    for position, character in enumerate(sorted(CHARACTERS)):
        names = sorted(name for name in files if character in name)
        expected = [np.asarray(Image.open(io.BytesIO(files[name])).convert("L")) for name in names]
        assert np.array_equal(images[position, :, 0], expected)


def test_an_unpacked_folder_gives_the_same_as_the_zip(archive, tmp_path):
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path / "unpacked")
    folder = tmp_path / "unpacked" / "images_background"
    assert np.array_equal(convert(folder, 28), convert(archive, 28))


def test_a_missing_drawing_is_told(archive, files):
    write_zip(archive, dict(list(files.items())[1:]))
    with pytest.raises(DataError, match=r"expected 3 characters .* found 3 .* and 59 .* The copy is incomplete"):
        convert(archive, 28)


def test_characters_beyond_omniglots_are_no_incomplete_copy(archive, files):
    turned = {name.replace("Latin/", "Latin_rot90/"): content for name, content in files.items()}
    write_zip(archive, files | turned)
    with pytest.raises(DataError, match=r"found 5 characters and 100 drawings\. Take out .* the key rotations"):
        convert(archive, 28)


def test_a_drawing_that_is_no_image_is_told(archive, files):
    write_zip(archive, files | {next(iter(files)): b"<html>Not found</html>"})
    with pytest.raises(DataError, match="a drawing that cannot be read"):
        convert(archive, 28)


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_byte_is_found_or_changes_nothing(archive, seed):
    expected = convert(archive, 28)
    content = bytearray(archive.read_bytes())
    content[np.random.default_rng(seed).integers(len(content))] ^= 0xFF
    archive.write_bytes(content)
    try:
        found = convert(archive, 28)
    except DataError:
        return
    assert np.array_equal(found, expected)  # A byte of a date, say.


def test_a_truncated_zip_is_told(archive):
    archive.write_bytes(archive.read_bytes()[:-1000])
    with pytest.raises(DataError, match="damaged or unreadable"):
        convert(archive, 28)


@pytest.mark.parametrize("place", ["data", "omniglot/data", "images", "omniglot_resized.zip", "data.zip"])
def test_alphabets_of_both_splits_in_one_folder_are_told_apart(archive, files, tmp_path, monkeypatch, place):
    monkeypatch.setitem(omniglot.ARCHIVES, "eval", omniglot.ARCHIVES["eval"]._replace(classes=1))
    expected = convert(archive, 28)
    merged = {name.partition("/")[2].replace("Greek", omniglot.BACKGROUND[0]): files[name] for name in files}
    merged |= {f"Tengwar/character01/{number:02d}.png": drawing(number) for number in range(20)}
    folder = tmp_path / "merged"
    write_zip(tmp_path / "all.zip", {f"data/{name}": content for name, content in merged.items()})
    if place.endswith(".zip"):
        folder.mkdir()
        (tmp_path / "all.zip").rename(folder / place)
    else:
        with zipfile.ZipFile(tmp_path / "all.zip") as content:
            content.extractall(tmp_path)
        (folder / place).parent.mkdir(parents=True)
        (tmp_path / "data").rename(folder / place)
    train, test = (load_images(DataRequest("omniglot", split, 28, str(folder))).images for split in ("train", "eval"))
    assert np.array_equal(train.numpy(), expected)
    assert tuple(test.shape) == (1, 20, 1, 28, 28)


@pytest.mark.parametrize("place", [".", "omniglot", "python", "omniglot/python", "omniglot-py"])
def test_usual_places_are_searched(tmp_path, place):
    folder = tmp_path / place / "images_evaluation"
    folder.mkdir(parents=True)
    assert omniglot.find(DataRequest("omniglot", "eval", 28, str(tmp_path))).samefile(folder)


def test_a_data_path_without_the_data_names_what_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"expected images_background\.zip or the folder images_background"):
        omniglot.find(DataRequest("omniglot", "train", 28, str(tmp_path)))
