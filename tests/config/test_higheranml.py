"""A config of higherANML runs as it is, or is told what to change."""

from pathlib import Path

import pytest

from anml.config.load import load_eval_configs, load_train_config
from anml.config.model_args import ClassifierArgs, ConvnetArgs

SANML = """
dataset: omni
train_size: 20
train_method: meta
sample_method: single
batch_size: 1
num_batches: 20
val_size: 0
remember_size: 64
inner_lr: 0.1
outer_lr: 0.001
epochs: 25000
model: classifier
model_name: sanml
model_args:
  encoder: convnet
  encoder_args: {num_blocks: 3, num_filters: 256, padding: 0, pool_size: [2, 2, 0]}
  classifier: linear-classifier
  classifier_args: {num_classes: 1000}
inner_params: all
outer_params: all
output_layer: classifier.linear
eval_steps: [10000, 25000]
eval:
  - olft: !include seq.yml
  - olft-oracle: !include iid.yml
"""
SEQUENTIAL = """
dataset: omni
train_examples: 15
test_examples: 5
method: seq
reinit_params: classifier.linear
opt_params: classifier
classes: 600
lr: [0.1, 0.01]
eval_freq: 50
"""


@pytest.fixture
def sanml(load, write):
    """Load the config above with changes to its text."""
    write("seq.yml", SEQUENTIAL)
    write("iid.yml", SEQUENTIAL.replace("seq", "iid"))

    def load_changed(old: str = "", new: str = "", *overrides: str):
        return load(SANML.replace(old, new) if old else SANML + new, *overrides)

    return load_changed


def test_a_training_config_loads(sanml) -> None:
    config = sanml().config
    assert (config.dataset, config.display_name, config.checkpoint_steps) == ("omniglot", "sanml", (10000, 25000))


def test_evaluation_methods_have_their_older_names(sanml) -> None:
    assert [flavor.eval_method for flavor in sanml().config.eval.values()] == ["sequential", "iid"]


def test_an_evaluation_config_loads(write) -> None:
    config = load_eval_configs(write("eval.yml", SEQUENTIAL))[0].config
    assert (config.dataset, config.eval_method, config.opt_params) == ("omniglot", "sequential", ("classifier",))


def test_method_is_the_training_method_at_the_top(sanml) -> None:
    assert sanml("train_method: meta", "method: sequential_episodic").config.train_method == "sequential_episodic"


def test_val_sample_size_is_val_size(sanml) -> None:
    assert sanml("val_size: 0", "val_sample_size: 0").config.val_size == 0


def test_both_names_of_a_key_are_one_too_many(problems) -> None:
    assert problems("dataset: omniglot\nmodel: anml\nval_size: 0\nval_sample_size: 1\n") == [
        "train.yml:4: val_sample_size: is an older name of val_size, which is given too; keep one of them"
    ]


def test_an_older_name_keeps_its_line(problems) -> None:
    assert problems("dataset: omni\nmodel: anml\nmethod: metta\n")[0].startswith('train.yml:3: train_method: "metta"')


@pytest.mark.parametrize("key", ["full_test: false", "download: true", "save_initial_model: true", "id: 1a2b"])
def test_a_key_without_meaning_here_is_noticed_and_ignored(sanml, key: str) -> None:
    notices = sanml("", f"{key}\n").notices
    assert [notice.split("ignored")[0] for notice in notices] == [
        f"train.yml:27: {key.split(':')[0]}: has no meaning here and is "
    ]


def test_keys_without_meaning_in_a_flavor_are_noticed_once(load) -> None:
    loaded = load("dataset: omni\nmodel: sanml\neval: {a: {record_learning_curve: true}}\n", "seed=1")
    assert len(loaded.notices) == 1


def test_oml_as_a_classifier_loads(load) -> None:
    text = """
dataset: omni
im_size: 84
model: classifier
model_args:
  encoder: convnet
  encoder_args: {num_blocks: 6, stride: [2, 1, 2, 1, 2, 2], padding: 0, norm_type: null, pool_size: null}
  classifier: mlp-classifier
  classifier_args: {num_classes: 1000, hidden_layers: 1024}
inner_params: classifier
output_layer: classifier.mlp.2
"""
    record = load(text).config.model_record
    assert isinstance(record, ClassifierArgs)
    encoder = record.encoder_record()
    assert isinstance(encoder, ConvnetArgs)
    assert (encoder.norm_type, encoder.pool_size) == ((None,), (0,))


@pytest.mark.parametrize(
    ("name", "norm"), [("batch", "bn"), ("groupnorm", "gn"), ("instance", "in"), ("none", None), ("in", "in")]
)
def test_norms_have_their_other_names(name: str, norm: str | None) -> None:
    assert ConvnetArgs.model_validate({"norm_type": name}).norm_type == (norm,)


def test_anml_as_a_classifier_loads(sanml) -> None:
    assert (
        sanml(
            "encoder: convnet\n  encoder_args: {num_blocks: 3, num_filters: 256, padding: 0, pool_size: [2, 2, 0]}",
            "encoder: anml-encoder\n  encoder_args: {rln_chs: 256, nm_chs: 112, pool_rln_output: false}",
        ).config.model_record.encoder
        == "anml-encoder"
    )


def test_iid_training_loads_with_its_optimizer_and_schedule(load) -> None:
    text = """
dataset: omni
train_size: 15
train_method: iid
batch_size: 256
epochs: 10
lobo_rate: 0
lobo_size: 1000
model: sanml
lr: 3.0e-4
optimizer: SGD
optimizer_args: {lr: 0.1, momentum: 0.9, weight_decay: 5.e-4}
lr_scheduler: StepLR
lr_scheduler_args: {step_size: 10, gamma: 0.1}
save_freq: 57
eval_steps: [300, 10000]
"""
    assert load(text).config.checkpoint_steps == (300, 570)


def test_what_is_not_here_is_answered_with_what_is(problems) -> None:
    assert problems("dataset: cifar\nmodel: anml\nmodel_args: {conv_blocks: 3}\n") == [
        'train.yml:1: dataset: "cifar" is not allowed; allowed: omniglot, glyphs, mini-imagenet, cifar-fs, '
        "omniimage20, omniimage100, images-folder; did you mean 'cifar-fs'?",
        "train.yml:3: model_args.conv_blocks: unknown key; did you mean 'num_blocks'?",
    ]
    assert problems("dataset: imagenet84\nmodel: anml\n")[0].startswith("train.yml:1: dataset: imagenet84 is not avail")


@pytest.mark.parametrize(
    ("text", "flavors"),
    [
        ("eval: {classes: 3}", ["eval"]), ("eval: {method: seq}", ["eval"]), ("eval: {a: {classes: 3}}", ["a"]),
        ("eval: [{a: {runs: 1}}, {b: {runs: 1}}]", ["a", "b"]), ("eval: [{a: {runs: 1}, b: {runs: 1}}]", ["a", "b"]),
        ("eval: [{classes: 3}]", ["eval"]), ("eval: {1: {runs: 1}}", ["1"]),
        ("eval: []", []), ("eval: {}", []), ("eval:", []),
    ],
)  # fmt: skip
def test_eval_is_one_evaluation_or_flavors(load, text: str, flavors: list[str]) -> None:
    assert list(load(f"dataset: omni\nmodel: anml\n{text}\n").config.eval) == flavors


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[{a: {runs: 1}}, {a: {runs: 2}}]", "eval[1].a: a flavor of this name is given at train.yml:3"),
        ("[a]", 'eval[0]: must be a flavor (- name: {...}), found "a"'),
        ("[[{a: {runs: 1}}]]", 'eval[0]: must be a flavor (- name: {...}), found [{"a": {"runs": 1}}]'),
        ("all", 'eval: must be a list of flavors (- name: {...}), found "all"'),
        ("[{a: 3}]", "eval.a: must be a mapping (key: value), found 3"),
        ("[{a: }]", "eval.a: has no settings; write them below it, further to the right"),
        ("{a: {runs: 1}, classes: 2}", "eval.classes: must be a mapping (key: value), found 2"),
    ],
)
def test_anything_else_for_eval_is_explained(problems, value: str, message: str) -> None:
    assert problems(f"dataset: omni\nmodel: anml\neval: {value}\n") == [f"train.yml:3: {message}"]


def test_a_flavor_of_a_list_keeps_its_lines(problems) -> None:
    assert problems("dataset: omni\nmodel: anml\neval:\n  - a:\n      runs: 1\n  - b:\n      runs: 0\n") == [
        "train.yml:7: eval.b.runs: must be 1 or more, found 0"
    ]


@pytest.mark.parametrize("name", ["ANML", "SANML", "OML", "anml", "Sanml"])
def test_models_may_be_called_as_their_classes(load, name: str) -> None:
    assert load(f"dataset: omni\nim_size: 84\nmodel: {name}\n").config.model == name.lower()


def test_a_classifier_may_be_called_as_its_class(sanml) -> None:
    assert sanml("model: classifier", "model: Classifier").config.model == "classifier"


def test_an_unknown_model_stays_as_it_was_written(problems) -> None:
    assert problems("dataset: omni\nmodel: AMNL\n")[0].startswith(
        'train.yml:2: model: "AMNL" is not allowed; allowed: '
    )


POOLING = "the last block of the NM is unpooled, as published; higherANML's later code pools it: pool_nm_output: true"


@pytest.mark.parametrize(
    ("text", "notices"),
    [
        ("model: anml\nmodel_args: {rln_chs: 256}", [f"train.yml:3: model_args: {POOLING}"]),
        ("model: anml", [f"train.yml:1: model_args: {POOLING}"]),
        ("model: anml\nmodel_args: {pool_nm_output: false}", []),
        ("model: sanml", []),
        (
            "model: classifier\nmodel_args:\n  encoder: anml-encoder\n  encoder_args: {nm_chs: 112}",
            [f"train.yml:5: model_args.encoder_args: {POOLING}"],
        ),
        ("model: classifier\nmodel_args: {encoder: convnet}", []),
    ],
)
def test_an_anml_that_was_another_one_is_noticed(load, text: str, notices: list[str]) -> None:
    assert load(f"dataset: omni\n{text}\n").notices == notices
    assert load(f"dataset: omniglot\n{text}\n").notices == []


def test_a_model_of_a_flavor_is_noticed(load) -> None:
    assert load("dataset: omniglot\nmodel: anml\neval:\n  a: {model: other.pth}\n").notices == [
        "train.yml:4: eval.a.model: is ignored: here the checkpoints of this training are evaluated; "
        "for others there is eval_anml.py"
    ]


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("miniimagenet", "mini-imagenet"),
        ("mini_imagenet", "mini-imagenet"),
        ("inet", "mini-imagenet"),
        ("omniimage", "omniimage20"),
        ("omni_image", "omniimage20"),
        ("OmniImage20", "omniimage20"),
        ("OmniImage100", "omniimage100"),
        ("omni", "omniglot"),
    ],
)
def test_data_sets_have_their_other_names(load, name: str, dataset: str) -> None:
    assert load(f"dataset: {name}\nmodel: sanml\n").config.dataset == dataset


def test_the_images_per_class_say_which_omniimage_is_meant(load) -> None:
    config = load("dataset: omniimage\nimgs_per_class: 100\nmodel: sanml\n").config
    assert (config.dataset, config.images_per_class) == ("omniimage100", 100)


def test_the_earlier_name_of_a_key_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "train.yml"
    path.write_text("dataset: glyphs\nmodel: sanml\nseeds: [1, 2]\nseeds_together: true\n")
    assert load_train_config(path).config.train_together is True


OMNIIMAGE = """
dataset: omniimage
imgs_per_class: 20
train_size: 15
num_batches: 20
val_sample_size: 200
model: sanml
"""
OMNI = "dataset: omni\nmodel: sanml\n"
ZAPPED = "dataset: omni\ntrain_method: iid\nepochs: 3\nmodel: sanml\nlobo_size: 9\n"


@pytest.mark.parametrize(
    ("text", "set_keys"),
    [
        (OMNIIMAGE, {"replacement": True, "val_size": 200}),
        (OMNIIMAGE + "train_method: sequential_episodic\n", {"replacement": True}),
        (OMNIIMAGE + "replacement: true\n", {"replacement": True}),
        (OMNIIMAGE.replace("20\nval", "15\nval"), {"replacement": None}),
        (OMNIIMAGE + "val_size: 3\n", {"val_size": 200, "validation_examples": 3, "examples_per_class": 15}),
        (ZAPPED + "lobo_rate: 1\n", {"lobo_first": None}),
        (ZAPPED + "lobo_rate: 3\n", {"lobo_first": 2}),
        (ZAPPED + "val_size: 0.25\n", {"val_size": 200, "validation_examples": 5, "examples_per_class": 15}),
        (ZAPPED + "train_size: 0.7\n", {"examples_per_class": 14, "validation_examples": None}),
        ("dataset: omni\nmodel: sanml\nsample_method: uniform\n", {"lobo_classes": "first"}),
        ("dataset: omni\nmodel: sanml\nsample_method: uniform\nlobotomize: false\n", {"lobo_classes": None}),
        ("dataset: omniglot\nmodel: sanml\nsample_method: uniform\n", {"lobo_classes": None}),
        ("dataset: omni\nmodel: sanml\nmax_grad_norm: 0\n", {"max_grad_norm": None}),
        (OMNI + "train_size: 25\n", {"train_size": 20, "replacement": None}),
        (OMNI + "train_size: 25\nnum_batches: 25\n", {"train_size": 20, "replacement": True}),
        (OMNI + "train_size: 0.75\nnum_batches: 20\n", {"examples_per_class": 15, "replacement": True}),
        (OMNI + "train_size: 0.75\nnum_batches: 15\n", {"replacement": None}),
        (OMNI + "val_size: 5\nval_sample_size: 9\nnum_batches: 20\n", {"val_size": 9, "replacement": True}),
        (OMNI + "val_size: 0.25\n", {"val_size": 200, "validation_examples": 5, "examples_per_class": 15}),
        (OMNI + "train_size: 15\nnum_batches: 20\nsample_method: uniform\n", {"replacement": None}),
        (OMNI + "greyscale: false\n", {"image_shape": (3, 28, 28)}),
        (OMNI + "greyscale: true\n", {"image_shape": (1, 28, 28)}),
        ("dataset: omniimage\nmodel: sanml\ngreyscale: false\n", {"image_shape": (3, 84, 84)}),
        ("dataset: omniimage\nmodel: sanml\ngreyscale: true\n", {"image_shape": (1, 84, 84)}),
    ],
)
def test_a_config_of_higheranml_trains_as_there(load, text: str, set_keys: dict[str, object]) -> None:
    config = load(text).config
    assert {key: getattr(config, key) for key in set_keys} == set_keys


def test_what_makes_it_train_as_there_is_noticed_where_it_follows_from(load) -> None:
    [notice] = load(OMNIIMAGE).notices
    assert notice.startswith("train.yml:5: num_batches: ")
    assert notice.endswith("replacement: true")


def test_what_its_user_has_written_stays(load) -> None:
    config = load("dataset: omni\nmodel: sanml\ntrain_method: iid\nepochs: 1\nval_size: 100\nval_examples: 5\n").config
    assert (config.val_size, config.val_examples) == (100, 5)


def test_a_data_set_that_higheranml_never_had_makes_no_config_its_own(problems) -> None:
    [problem] = problems("dataset: cifarfs\nmodel: sanml\ntrain_size: 700\n")
    assert "a class of cifar-fs has 600 examples" in problem


def test_our_own_config_is_told_of_the_key_and_not_changed(problems) -> None:
    [problem] = problems(OMNIIMAGE.replace("omniimage", "omniimage20").replace("val_sample_size: 200\n", ""))
    assert problem.startswith("train.yml:5: num_batches: ")
    assert problem.endswith("replacement: true")


def test_a_train_size_above_what_a_class_has_is_noticed_at_its_line(load) -> None:
    [notice] = load(OMNI + "train_size: 25\n").notices
    assert notice.startswith("train.yml:3: train_size: is more than a class has: all its 20 examples")


def test_a_train_size_above_what_a_class_has_leaves_no_examples_for_validation(problems) -> None:
    found = problems(OMNI + "train_size: 25\nval_size: 5\nval_sample_size: 9\n")
    assert found[0] == "train.yml:3: train_size: a class of omniglot has 20 examples, found 25"


def test_a_key_that_is_not_available_is_refused_where_it_asks_for_something(load, problems) -> None:
    assert load(OMNIIMAGE + "use_random_split: false\n").config.replacement
    [found] = problems(OMNIIMAGE + "use_random_split: true\n")
    assert found.startswith("train.yml:8: use_random_split: ")


def test_greyscale_of_an_evaluation_is_its_channels(write) -> None:
    assert load_eval_configs(write("eval.yml", SEQUENTIAL + "greyscale: false\n"))[0].config.channels == 3


PRETRAINED = """
dataset: omniimage
model: classifier
model_args:
  encoder: {}
  encoder_args: {{pretrained: {}, progress: true}}
"""


@pytest.mark.parametrize("encoder", ["resnet18", "wide_resnet50_2", "vgg16_bn_encoder"])
def test_weights_are_not_downloaded(load, problems, encoder: str) -> None:
    at = "train.yml:6: model_args.encoder_args"
    notices = load(PRETRAINED.format(encoder, "false")).notices
    assert [notice.split(": has no")[0] for notice in notices] == [f"{at}.pretrained", f"{at}.progress"]
    [found] = problems(PRETRAINED.format(encoder, "true"))
    assert found.startswith(f"{at}.pretrained: is not available: no weights are downloaded; ")


def test_arguments_of_models_have_their_names_there(load) -> None:
    oml = load("dataset: omni\nim_size: 84\nmodel: oml\nmodel_args: {planes: 3, fc_layer_size: 4}\n").config
    assert (oml.model_args["num_filters"], oml.model_args["hidden"]) == (3, 4)
    assert load("dataset: omni\nmodel: anml\nmodel_args: {num_conv_blocks: 2}\n").config.model_args["num_blocks"] == 2
