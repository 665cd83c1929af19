"""A folder of images is counted on a login node: classes, their split, and how many images of each."""

from collections.abc import Callable
from pathlib import Path

import pytest

from anml.config.evaluation import ClassSplit
from anml.config.image_folder import check_held_out, is_image, list_classes, split_by_fraction
from anml.config.load import dump_config, load_train_config
from anml.config.smoke_test import smoke_test
from anml.errors import ConfigError

BASE = "dataset: images-folder\ndata_path: images\nmodel: sanml\nnum_batches: 2\n"
FLAVOR = BASE + "eval:\n  a: {classes: 2, train_examples: 2, test_examples: 1}\n"
LETTERS = "abcdefghij"


@pytest.fixture
def folder(here: Path) -> Callable[..., Path]:
    """Make a folder with so many files per class that are called images (nothing here may read them)."""

    def make(classes: dict[str, int], name: str = "images") -> Path:
        for label, count in classes.items():
            (here / name / label).mkdir(parents=True)
            for number in range(count):
                (here / name / label / f"{number}.jpg").touch()
        return here / name

    return make


def test_a_class_is_a_folder_that_holds_images_at_any_depth(folder) -> None:
    path = folder({"cats/siamese": 2, "cats/persian": 1, "dogs": 1, "empty": 0, ".hidden": 1})
    (path / "dogs" / "notes.txt").touch()
    (path / "dogs" / "._0.jpg").touch()
    (path / "loose.jpg").touch()
    assert list_classes(path) == {"cats/persian": ["0.jpg"], "cats/siamese": ["0.jpg", "1.jpg"], "dogs": ["0.jpg"]}


def test_links_to_folders_are_followed_but_not_in_circles(folder, here) -> None:
    path = folder({"cats": 1})
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "0.png").touch()
    (path / "dogs").symlink_to(here / "elsewhere")
    (path / "cats" / "up").symlink_to(path)
    assert list(list_classes(path)) == ["cats", "dogs"]


@pytest.mark.parametrize(("name", "expected"), [("a.JPEG", True), ("a.png", True), ("a.txt", False), ("jpg", False)])
def test_images_are_known_by_their_names(name: str, expected: bool) -> None:
    assert is_image(name) is expected


def test_a_split_depends_on_the_names_alone() -> None:
    split = split_by_fraction(LETTERS, 0.7)
    assert (len(split.train), len(split.eval)) == (7, 3)
    assert split_by_fraction(reversed(LETTERS), 0.7) == split
    # Written down: results of a year ago must not change.
    assert split.eval == ("a", "g", "i")


@pytest.mark.parametrize(("fraction", "train"), [(0, 0), (0.01, 1), (0.99, 9), (1, 10)])
def test_neither_part_of_a_split_is_empty_unless_asked_for(fraction: float, train: int) -> None:
    assert len(split_by_fraction(LETTERS, fraction).train) == train


def test_seven_tenths_of_the_classes_train(load, folder) -> None:
    folder(dict.fromkeys(LETTERS, 5))
    config = load(FLAVOR).config
    assert config.class_split == split_by_fraction(LETTERS, 0.7)
    assert (config.num_train_classes, config.images_per_class, config.image_shape) == (7, 5, (3, 84, 84))


@pytest.mark.parametrize("text", ["[a, c]", "{train: [a, c], eval: [b, d, e]}"])
def test_a_split_may_be_listed(load, folder, text: str) -> None:
    folder(dict.fromkeys("abcde", 3))
    assert load(FLAVOR, f"class_split={text}").config.class_split == ClassSplit(train=("a", "c"), eval=("b", "d", "e"))


def test_a_list_of_classes_may_be_a_file(load, folder, write) -> None:
    folder(dict.fromkeys("abcde", 3))
    write("mine.yml", "- b\n- d\n")
    assert load(FLAVOR + "class_split: !include mine.yml\n").config.class_split.train == ("b", "d")  # type: ignore[union-attr]


def test_folders_called_train_and_test_split_the_classes(load, folder) -> None:
    folder({"train/a": 3, "train/b": 3, "test/c": 3, "test/d": 3, "val/e": 3})
    split = load(FLAVOR).config.class_split
    assert split == ClassSplit(train=("train/a", "train/b"), eval=("test/c", "test/d"))


def test_the_same_classes_in_train_and_test_are_no_split_of_classes(problems, folder) -> None:
    path = folder({"train/a": 3, "train/b": 3, "test/a": 3, "test/b": 3})
    assert path.is_dir()
    assert problems(FLAVOR) == [
        "train.yml:2: data_path: its folders for training and evaluation hold the same classes (a, b), but evaluation "
        "needs classes that training has not seen; give the path of one of these folders"
    ]


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("training", "testing"), ("train", "validation")])
def test_a_split_of_images_by_other_names_is_no_split_of_classes(problems, folder, train: str, test: str) -> None:
    path = folder(dict.fromkeys([f"{part}/{label}" for part in (train, test) for label in "abc"], 3))
    (problem,) = problems(BASE, f"data_path={path}")
    assert "hold the same classes (a, b, c), but evaluation needs classes that training has not seen" in problem


def test_unequal_classes_give_what_the_smallest_has_and_the_user_is_told(load, folder) -> None:
    folder({"a": 3, "b": 7, "c": 9, "d": 4})
    loaded = load(FLAVOR, "class_split=0.5")
    assert loaded.config.images_per_class == 3
    assert loaded.notices == [
        "train.yml:1: imgs_per_class: classes have 3 (a) to 9 images; every class gives its first 3. "
        "With imgs_per_class: N, smaller classes are left out instead"
    ]


def test_classes_with_too_few_images_are_left_out_and_the_user_is_told(load, folder) -> None:
    folder({"a": 3, "b": 7, "c": 9, "d": 5, "e": 8})
    loaded = load(FLAVOR, "class_split=[a, b]", "imgs_per_class=5")
    assert loaded.config.class_split == ClassSplit(train=("b",), eval=("c", "d", "e"))
    assert loaded.notices == ["--set: imgs_per_class: 1 classes with fewer than 5 are left out: a"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("class_split=[a, x]", "--set: class_split: not in the folder: x; there are: a, b, c and 7 more"),
        (
            "class_split={train: [a, b], eval: [b]}",
            "--set: class_split: given twice: b; a class is for training or for evaluation",
        ),
        ("class_split={train: [], eval: []}", "--set: class_split: names no class"),
        ("class_split=1.5", "--set: class_split: must be 1 or less, found 1.5"),
        ("class_split=0", "--set: class_split: leaves no class to train on"),
        ("class_split=[]", "--set: class_split: must hold at least one value, found []"),
        ("class_split=0.9", "train.yml:6: eval.a.classes: images-folder has 1 evaluation classes, found 2"),
        ("imgs_per_class=9", "--set: imgs_per_class: no class has 9 images; the largest has 3"),
        ("train_size=4", "--set: train_size: a class of images-folder has 3 examples, found 4"),
        (
            "eval.a.test_examples=2",
            "train.yml:6: eval.a.train_examples: train_examples + test_examples = 4, but a class of images-folder "
            "has 3 examples",
        ),
    ],
)
def test_what_the_folder_does_not_hold_is_refused(problems, folder, override: str, message: str) -> None:
    folder(dict.fromkeys(LETTERS, 3))
    assert problems(FLAVOR, override) == [message]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere", "there is no such folder"),
        (".", "no class folders here"),
    ],
)
def test_a_folder_without_classes_says_what_was_expected(problems, text: str, message: str) -> None:
    (found,) = problems(BASE, f"data_path={text}")
    assert found.startswith("--set: data_path: ")
    assert f"{message}; expected one folder per class" in found


def test_one_folder_under_two_names_is_refused(problems, folder) -> None:
    path = folder({"heron": 3, "kite": 3, "owl": 3})
    (path / "stork").symlink_to(path / "heron")
    (problem,) = problems(BASE, f"data_path={path}")
    assert problem.startswith("--set: data_path: ")
    assert ": heron and stork are one folder, by a link; remove the link, or leave one of them out" in problem


def test_a_link_may_stand_for_its_folder(load, folder) -> None:
    path = folder({"heron": 3, "kite": 3, "owl": 3})
    (path / "stork").symlink_to(path / "heron")
    split = "class_split={train: [stork, kite], eval: [owl]}"
    assert load(BASE, f"data_path={path}", split).config.class_split.train == ("stork", "kite")


@pytest.mark.parametrize("split", ["0.5", "{train: [a, b], eval: [c, d]}"])
def test_an_image_of_a_training_and_an_evaluation_class_is_refused(problems, folder, split: str) -> None:
    path = folder({"a": 0, "b": 0, "c": 0, "d": 0})
    for number, label in enumerate("abcd"):
        (path / label / "0.jpg").write_bytes(b"as long %d" % number)  # Alike in name and size only.
        (path / label / "shared.jpg").write_bytes(b"the same")
    [problem] = problems(BASE, f"class_split={split}")
    assert problem.startswith("train.yml:2: data_path: ")
    assert "(2 of them): " in problem
    assert "/shared.jpg is " in problem
    assert "0.jpg" not in problem


def test_an_image_trained_on_is_refused_in_the_classes_of_a_flavor_of_its_own(problems, folder) -> None:
    path = folder(dict.fromkeys("abcde", 3))
    for label in "ae":
        (path / label / "0.jpg").write_bytes(b"the same")
    split = "class_split={train: [a, b], eval: [c, d]}"
    [problem] = problems(FLAVOR, split, "eval.a.class_split={eval: [c, e]}")
    assert "eval.a.data_path: " in problem
    assert "(1 of them): e/0.jpg is a/0.jpg; remove" in problem


def test_the_same_image_twice_in_training_or_beyond_those_used_is_allowed(load, folder) -> None:
    path = folder({"a": 0, "b": 0, "c": 0})
    for label in "abc":
        (path / label / "0.jpg").write_bytes(b"of " + label.encode())
    for label in "ab":
        (path / label / "1.jpg").write_bytes(b"trained on twice")
        (path / label / "2.jpg").write_bytes(b"not used")
    (path / "c" / "1.jpg").write_bytes(b"its own")
    (path / "c" / "2.jpg").write_bytes(b"not used")
    split = "class_split={train: [a, b], eval: [c]}"
    assert load(BASE, split, "imgs_per_class=2").config.class_split.train == ("a", "b")


def test_a_folder_must_be_named(problems) -> None:
    (found,) = problems(BASE, "data_path=null")
    assert "data_path: images-folder needs the path of a folder" in found


def test_a_split_is_for_folders(problems) -> None:
    assert problems("dataset: glyphs\nmodel: sanml\nclass_split: 0.5\n") == [
        "train.yml:3: class_split: glyphs has a split of its own; class_split is for images-folder"
    ]


def test_a_resolved_config_says_which_classes_and_needs_no_folder(load, folder, write, here) -> None:
    folder(dict.fromkeys(LETTERS, 3)).rename(here / "elsewhere")
    (here / "elsewhere").rename(here / "images")
    config = load(FLAVOR).config
    (here / "images").rename(here / "gone")
    assert load_train_config(write("again.yml", dump_config(config))).config == config


def test_a_grown_folder_changes_nothing_in_an_experiment(load, folder, write) -> None:
    folder(dict.fromkeys("abcd", 3))
    config = load(FLAVOR, "class_split=0.5").config
    folder({"new": 1}, "images")
    assert load_train_config(write("again.yml", dump_config(config))).config == config


def test_evaluation_meets_the_classes_that_training_does_not(load, folder) -> None:
    folder(dict.fromkeys("abcde", 3))
    config = load(FLAVOR, "class_split=[a, c]").config
    assert config.train_request.classes == ("a", "c")
    assert config.eval_request(config.eval["a"]).classes == ("b", "d", "e")


def test_a_flavor_may_not_be_evaluated_on_classes_of_the_training(problems, folder) -> None:
    folder(dict.fromkeys("abcde", 3))
    assert problems(FLAVOR, "class_split=[a, c]", "eval.a.class_split=[d, e]") == [
        "--set: eval.a.class_split: the model is trained on 2 of these classes, such as a"
    ]


def test_all_classes_of_another_folder_are_unseen(load, folder) -> None:
    folder(dict.fromkeys("abcde", 3))
    folder(dict.fromkeys("xyz", 3), "others")
    config = load(FLAVOR, "class_split=[a, c]", "eval.a.data_path=others").config
    assert config.eval_request(config.eval["a"]).classes == ("x", "y", "z")
    assert config.eval_request(config.eval["a"]).examples == 3


def test_another_folder_with_names_of_training_classes_is_told(load, folder) -> None:
    folder(dict.fromkeys("abcde", 3))
    folder(dict.fromkeys("cdx", 3), "others")
    loaded = load(FLAVOR, "class_split=[a, c]", "eval.a.data_path=others")
    assert loaded.notices == [
        "--set: eval.a.data_path: 1 of its classes have names of training classes, such as c; if they are the same, "
        "name the others: class_split: {eval: [...]}"
    ]


def test_another_data_set_may_be_evaluated_on(load, folder) -> None:
    folder(dict.fromkeys("xyz", 3), "others")
    text = FLAVOR.replace("images-folder\ndata_path: images", "mini-imagenet")
    config = load(text, "eval.a.dataset=images-folder", "eval.a.data_path=others").config
    assert config.eval_request(config.eval["a"]).classes == ("x", "y", "z")


def test_a_flavor_on_a_folder_must_name_it_if_training_is_on_something_else(problems) -> None:
    text = FLAVOR.replace("images-folder\ndata_path: images", "mini-imagenet")
    (found,) = problems(text, "eval.a.dataset=images-folder")
    assert "eval.a.data_path: images-folder needs the path of a folder" in found


def test_a_smoke_test_of_a_folder_is_a_config_like_any_other(load, folder, write) -> None:
    folder(dict.fromkeys(LETTERS, 30))
    small = smoke_test(load(FLAVOR, "train_size=25", "val_size=9", "augment=true").config)
    assert load_train_config(write("small.yml", dump_config(small))).config == small


HELD_OUT = FLAVOR.replace("{classes: 2", "{split: validation, classes: 2").replace("model:", "train_classes: 3\nmodel:")


def test_training_classes_of_a_folder_may_be_held_out(load, folder) -> None:
    folder(dict.fromkeys(LETTERS, 3))
    config = load(HELD_OUT, "class_split=[a, b, c, d, e]").config
    request = config.eval_request(config.eval["a"])
    assert (request.split, request.classes, request.first_class) == ("train", tuple("abcde"), 3)
    assert request._replace(first_class=0) == config.train_request


def test_an_image_of_a_trained_class_is_not_held_out_too(load, folder) -> None:
    path = folder(dict.fromkeys(LETTERS, 3))
    check = ["class_split=[a, b, c, d, e]"]
    check_held_out(load(HELD_OUT, *check).config)
    for label in "be":
        (path / label / "1.jpg").write_bytes(b"the same")
    with pytest.raises(ConfigError, match=r"e/1\.jpg is b/1\.jpg"):
        check_held_out(load(HELD_OUT, *check).config)
    check_held_out(load(HELD_OUT, *check, "eval={}").config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.a.classes=3", "--set: eval.a.classes: images-folder has 2 background classes for validation "
         "(train_classes leaves so many), found 3"),
        ("eval.a.data_path=others", "--set: eval.a.data_path: split: validation takes background classes of the "
         "training, from its data_path; leave this one out"),
        ("eval.a.class_split=[a]", "--set: eval.a.class_split: is for evaluation classes; split: validation takes "
         "those that train_classes leaves out; remove it"),
    ],
)  # fmt: skip
def test_no_other_classes_of_a_folder_are_held_out(problems, folder, override: str, message: str) -> None:
    folder(dict.fromkeys(LETTERS, 3))
    assert problems(HELD_OUT, "class_split=[a, b, c, d, e]", override) == [message]


ROTATED = {
    "train/a_rot090": 3,
    "train/b-rot0": 3,
    "train/c": 3,
    "test/a_rot180": 3,
    "test/b/rot270": 3,
    "test/carrot90": 3,
}


def test_rotations_of_one_class_on_both_sides_are_told(folder, load) -> None:
    folder(ROTATED)
    [notice] = load(FLAVOR).notices
    assert "class_split: 2 evaluation classes" in notice
    assert "test/a_rot180 of train/a_rot090" in notice


def test_an_evaluation_on_rotations_of_training_classes_is_told(folder, load) -> None:
    folder({f"{name}_rot{angle}": 3 for name in "ab" for angle in (0, 90)})
    split = (
        BASE + "class_split: {train: [a_rot0, b_rot0], eval: [CLASSES]}\neval:\n  a: {classes: 1, train_examples: 2,"
    )
    split += " test_examples: 1, class_split: {eval: [b_rot90]}}\n"
    notices = load(split.replace("CLASSES", "a_rot90")).notices
    assert [notice.partition(":")[2].split(":")[1].strip() for notice in notices] == [
        "class_split",
        "eval.a.class_split",
    ]


def test_rotations_on_one_side_cause_no_notice(folder, load) -> None:
    folder({"train/a_rot0": 3, "train/a_rot90": 3, "test/b_rot0": 3, "test/b_rot90": 3})
    assert load(FLAVOR).notices == []
