"""An evaluation may name several data sets."""

BASE = "dataset: glyphs\nmodel: sanml\neval:\n  olft: {dataset: [omni, glyphs], classes: [5, 10], runs: 2}\n"


def test_each_data_set_is_a_flavor_of_its_own(load) -> None:
    flavors = load(BASE).config.eval
    assert {name: flavor.dataset for name, flavor in flavors.items()} == {
        "olft-omniglot": "omniglot",
        "olft-glyphs": "glyphs",
    }
    assert {(flavor.classes, flavor.runs) for flavor in flavors.values()} == {((5, 10), 2)}


def test_overrides_name_the_flavor_as_it_is_written(load) -> None:
    flavors = load(BASE, "eval.olft.runs=3", "eval.olft.dataset=[glyphs]").config.eval
    assert {name: flavor.runs for name, flavor in flavors.items()} == {"olft": 3}


def test_problems_are_told_of_the_data_set_that_has_them(problems) -> None:
    assert problems(BASE, "eval.olft.dataset=[glyphs, mini-imagenet]") == [
        "--set: eval.olft-mini-imagenet.dataset: mini-imagenet has images of 3 channels, the model takes those "
        "of 1; add channels: 1 to convert them"
    ]


def test_a_data_set_given_twice_is_refused(problems) -> None:
    assert problems(BASE, "eval.olft.dataset=[omniglot, omni]") == [
        "--set: eval.olft.dataset: makes a flavor olft-omniglot, which there is already; rename one, or name a "
        "data set once"
    ]


def test_a_flavor_of_that_name_is_not_overwritten(problems) -> None:
    assert problems(BASE + "  olft-glyphs: {runs: 1}\n") == [
        "train.yml:4: eval.olft.dataset: makes a flavor olft-glyphs, which there is already; rename one, or name a "
        "data set once"
    ]


def test_an_unknown_data_set_of_a_list_is_told(problems) -> None:
    (found,) = problems(BASE, "eval.olft.dataset=[glyphs, cifar]")
    assert 'eval.olft-cifar.dataset: "cifar" is not allowed' in found
