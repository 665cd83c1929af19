"""Mini-ImageNet, OmniImage and a user's own folders, on small copies of the same layout and file format."""

import hashlib
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anml.config.evaluation import DataRequest
from anml.config.facts import Split, find_dataset
from anml.data import array_file, load_images, sources
from anml.errors import DataError

MINI = {
    f"{split}/n{split}{number}": 3
    for split, count in (("train", 4), ("val", 2), ("test", 2))
    for number in range(count)
}
OMNI = [f"n{number:08d}" for number in range(10)]


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def mini(tmp_path: Path, make_images: Callable) -> Path:
    """A data folder with a Mini-ImageNet of 4 training, 2 validation and 2 test classes of 3 images."""
    make_images(tmp_path / "data" / "processed_images", MINI)
    return tmp_path / "data"


def load(dataset: str, data_path: Path, split: Split = "train", **options):
    size = options.pop("size", 84)
    return load_images(DataRequest(dataset, split, size, str(data_path), allow_incomplete=True, **options))


def pixels_of(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file)).transpose(2, 0, 1)


def test_images_come_in_order_of_class_and_file_as_they_were_stored(mini):
    images = load("mini-imagenet", mini).images
    assert (images.dtype, images.shape) == (torch.uint8, (4, 3, 3, 84, 84))
    folder = mini / "processed_images" / "train"
    expected = [[pixels_of(file) for file in sorted((folder / f"ntrain{c}").iterdir())] for c in range(4)]
    assert np.array_equal(images.numpy(), expected)


def test_evaluation_meets_the_test_classes(mini):
    images = load("mini-imagenet", mini, "eval").images
    first = mini / "processed_images" / "test" / "ntest0" / "ntest000000000.jpg"
    assert images.shape[0] == 2
    assert np.array_equal(images[0, 0].numpy(), pixels_of(first))


def pack(source: Path, archive: Path, inside: str) -> None:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as target:
            for file in sorted(source.rglob("*.jpg")):
                target.write(file, Path(inside) / file.relative_to(source))
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix == ".gz" else "w") as target:
            target.add(source, inside)


@pytest.mark.parametrize(
    ("archive", "source", "inside"),
    [
        ("train.tar", "train", "train"),
        ("train.tar", "train", "./train"),
        ("train.tar", "train", "."),
        ("mini-imagenet.tar.gz", ".", "processed_images"),
        ("mini-imagenet.tar", ".", "mini-imagenet/processed_images"),
        ("processed_images.zip", ".", "processed_images"),
    ],
)
def test_an_archive_gives_the_same_as_the_folder(mini, tmp_path, archive, source, inside):
    packed = tmp_path / "packed"
    packed.mkdir()
    pack(mini / "processed_images" / source, packed / archive, inside)
    expected = load("mini-imagenet", mini).images
    assert torch.equal(load("mini-imagenet", packed).images, expected)


def test_the_data_path_may_be_the_archive(mini, tmp_path):
    pack(mini / "processed_images", tmp_path / "all.tar", "inet")
    assert torch.equal(
        load("mini-imagenet", tmp_path / "all.tar", "eval").images, load("mini-imagenet", mini, "eval").images
    )


def test_an_archive_is_needed_only_to_be_converted_once(mini, tmp_path, own_cache):
    pack(mini / "processed_images", tmp_path / "all.tar", "inet")
    load("mini-imagenet", tmp_path / "all.tar")
    made = [file.stat().st_mtime_ns for file in own_cache.glob("*.npy")]
    load("mini-imagenet", tmp_path / "all.tar")
    assert [file.stat().st_mtime_ns for file in own_cache.glob("*.npy")] == made


def test_a_copy_elsewhere_shares_the_array(mini, tmp_path, own_cache):
    load("mini-imagenet", mini)
    shutil.copytree(mini, tmp_path / "copy")
    load("mini-imagenet", tmp_path / "copy")
    assert len(list(own_cache.glob("*.npy"))) == 1


def test_the_data_are_needed_only_once(mini):
    first = load("mini-imagenet", mini).images
    shutil.rmtree(mini)
    assert torch.equal(load("mini-imagenet", mini).images, first)
    with pytest.raises(DataError, match="no mini-imagenet here"):
        load("mini-imagenet", mini, "eval")


def test_what_a_folder_held_before_does_not_stand_for_what_it_holds(mini, make_images):
    load("mini-imagenet", mini)
    make_images(mini / "processed_images", {"train/nnew": 3})
    load("mini-imagenet", mini)
    shutil.rmtree(mini)
    assert load("mini-imagenet", mini).num_classes == 5


def test_a_users_folder_that_is_gone_serves_only_the_classes_it_was_converted_for(tmp_path, make_images):
    make_images(tmp_path / "own", {"a": 2, "b": 2})
    load_images(folder_request(tmp_path / "own", ("a",), 2))
    shutil.rmtree(tmp_path / "own")
    assert load_images(folder_request(tmp_path / "own", ("a",), 2)).num_classes == 1
    with pytest.raises(DataError, match="there is no such folder"):
        load_images(folder_request(tmp_path / "own", ("b",), 2))


def test_another_image_makes_another_array(mini, make_images):
    assert load("mini-imagenet", mini).num_classes == 4
    make_images(mini / "processed_images", {"train/nnew": 3})
    assert load("mini-imagenet", mini).num_classes == 5


def test_an_incomplete_copy_is_refused(mini):
    with pytest.raises(
        DataError, match=r"expected 64 train classes .* 600 images each, found 4 classes.*allow_incomplete"
    ):
        load_images(DataRequest("mini-imagenet", "train", 84, str(mini)))


def test_an_incomplete_copy_is_refused_even_if_somebody_accepted_it_before(mini, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_SETTLED_NS", -(10**12))  # The array is known without a look into the archive.
    pack(mini / "processed_images", tmp_path / "all.tar", "inet")
    load("mini-imagenet", tmp_path / "all.tar")
    with pytest.raises(DataError, match=r"found 4 classes of 3"):
        load_images(DataRequest("mini-imagenet", "train", 84, str(tmp_path / "all.tar")))


def test_of_a_copy_with_gaps_every_class_gives_what_the_smallest_has(mini):
    next((mini / "processed_images" / "train" / "ntrain1").iterdir()).unlink()
    assert load("mini-imagenet", mini).images.shape[:2] == (4, 2)


def test_a_damaged_image_is_named(mini):
    file = mini / "processed_images" / "train" / "ntrain2" / "ntrain200000001.jpg"
    file.write_bytes(file.read_bytes()[:600])
    with pytest.raises(
        DataError, match=r"ntrain2/ntrain200000001\.jpg: not an image that can be read .*Replace this file"
    ):
        load("mini-imagenet", mini)


def test_what_is_no_image_is_said_in_words(mini):
    next((mini / "processed_images" / "train" / "ntrain3").iterdir()).write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"\.jpg: not an image that can be read \(in no known format\)\. Replace"):
        load("mini-imagenet", mini)


def test_a_conversion_that_fails_leaves_no_array_behind(mini, own_cache):
    next((mini / "processed_images" / "train" / "ntrain3").iterdir()).write_bytes(b"<html>")
    with pytest.raises(DataError):
        load("mini-imagenet", mini)
    assert [file.suffix for file in own_cache.iterdir()] == [".json"]


@pytest.mark.parametrize("archive", ["all.tar", "all.tar.gz", "all.zip"])
def test_a_truncated_archive_is_told(mini, tmp_path, archive):
    path = tmp_path / archive
    pack(mini / "processed_images", path, "inet")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"all\.(tar|tar\.gz|zip): .*(damaged|not an image)"):
        load("mini-imagenet", path)


def test_a_data_path_without_the_data_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"no mini-imagenet here: expected the folders processed_images/train"):
        load("mini-imagenet", tmp_path)


@pytest.mark.parametrize("dataset", ["mini-imagenet", "omniimage20"])
def test_what_cannot_be_downloaded_says_where_to_look(dataset):
    with pytest.raises(DataError, match=r"cannot be downloaded automatically.*docs/data\.md"):
        load_images(DataRequest(dataset, "train", 84, None))


def folder_request(path: Path, classes: tuple[str, ...], examples: int, size: int = 84) -> DataRequest:
    return DataRequest("images-folder", "train", size, str(path), classes, examples)


def first_image(path: Path, size: int = 84) -> np.ndarray:
    """Return the only image of the class `a`, converted."""
    return load_images(folder_request(path, ("a",), 1, size)).images[0, 0].numpy()


def test_a_larger_image_is_cut_to_its_central_square_and_shrunk(tmp_path):
    (tmp_path / "a").mkdir()
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, 100:200] = 200
    Image.fromarray(wide).save(tmp_path / "a" / "x.png")
    assert (first_image(tmp_path, 50) == 200).all()


def test_a_grey_image_becomes_rgb(tmp_path, make_images):
    make_images(tmp_path, {"a": 1}, mode="L")
    image = first_image(tmp_path)
    assert image.shape == (3, 84, 84)
    assert (image == image[:1]).all()


def test_an_image_of_16_bits_is_refused_rather_than_cut_off(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((84, 84), 3000, np.uint16)).save(tmp_path / "a" / "x.png")
    with pytest.raises(DataError, match=r"x\.png: has more than 8 bits per channel"):
        first_image(tmp_path)


def test_an_image_is_turned_as_its_exif_tag_says(tmp_path):
    (tmp_path / "a").mkdir()
    pixels = np.zeros((84, 84, 3), np.uint8)
    pixels[:42] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # Upside down.
    Image.fromarray(pixels).save(tmp_path / "a" / "x.png", exif=exif)
    assert first_image(tmp_path)[0, 83, 0] == 255


def test_of_a_folder_the_classes_and_first_images_named_are_taken(tmp_path, make_images):
    make_images(tmp_path, {"cats/siamese": 3, "dogs": 5, "birds": 2}, suffix=".png")
    images = load_images(folder_request(tmp_path, ("cats/siamese", "dogs"), 2)).images
    assert images.shape[:2] == (2, 2)
    assert np.array_equal(images[1, 1].numpy(), pixels_of(tmp_path / "dogs" / "dogs00000001.png"))


@pytest.mark.parametrize(
    ("classes", "examples", "message"),
    [(("a", "gone"), 1, "no images in gone"), (("a",), 3, "a has 2 images, expected 3")],
)
def test_what_a_config_names_must_be_there(tmp_path, make_images, classes, examples, message):
    make_images(tmp_path, {"a": 2})
    with pytest.raises(DataError, match=message):
        load_images(folder_request(tmp_path, classes, examples))


@pytest.fixture
def omni(tmp_path: Path, make_images: Callable) -> Path:
    """A data folder with an OmniImage of 10 classes of 2 images."""
    make_images(tmp_path / "data" / "OmnImage84_20", dict.fromkeys(OMNI, 2))
    return tmp_path / "data"


def classes_of(dataset: str, data_path: Path, split: str) -> list[str]:
    request = DataRequest(dataset, split, 84, str(data_path), allow_incomplete=True)  # type: ignore[arg-type]
    files = find_dataset(request.dataset).load()
    return [Path(images[0]).parent.name for images in files.select(request, files.find(request))]


def test_seven_of_ten_classes_of_omniimage_train_by_the_hash_of_their_names(omni):
    order = sorted(OMNI, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert classes_of("omniimage20", omni, "train") == sorted(order[:7])
    assert classes_of("omniimage20", omni, "eval") == sorted(order[7:])


def test_the_authors_list_of_evaluation_classes_counts(omni):
    (omni / "evolved_test_class_names.json").write_text(json.dumps(OMNI[4:6]))
    assert classes_of("omniimage20", omni, "eval") == OMNI[4:6]
    assert classes_of("omniimage20", omni, "train") == OMNI[:4] + OMNI[6:]


def test_folders_that_split_omniimage_count(tmp_path, make_images):
    make_images(tmp_path / "OmnImage84_20", {f"train/{OMNI[0]}": 2, f"test/{OMNI[1]}": 2})
    assert classes_of("omniimage20", tmp_path, "train") == OMNI[:1]
    assert classes_of("omniimage20", tmp_path, "eval") == OMNI[1:2]


def test_an_archive_of_omniimage_is_split_like_its_folder(omni, tmp_path):
    pack(omni / "OmnImage84_20", tmp_path / "OmnImage84_20.zip", "OmnImage84_20")
    assert torch.equal(load("omniimage20", tmp_path, "eval").images, load("omniimage20", omni, "eval").images)


def test_omniimage_has_two_sizes(omni):
    with pytest.raises(DataError, match="no omniimage100 here: expected the folder OmnImage84_100"):
        load("omniimage100", omni)


def test_the_array_file_is_an_ordinary_npy(mini):
    file = array_file(DataRequest("mini-imagenet", "train", 84, str(mini), allow_incomplete=True))
    assert np.array_equal(np.load(file), load("mini-imagenet", mini).images.numpy())
