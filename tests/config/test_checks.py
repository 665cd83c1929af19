"""What is well-formed but makes no sense is refused before anything is submitted."""

import pytest

from anml.config.load import dump_config
from anml.config.protocols import PROTOCOLS

BASE = "dataset: glyphs\nmodel: sanml\n"
FLAVOR = "dataset: glyphs\nmodel: sanml\neval:\n  a: {runs: 1}\n"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train_size=21", "--set: train_size: a class of glyphs has 20 examples, found 21"),
        ("imgs_per_class=21", "--set: imgs_per_class: a class of glyphs has 20 examples, found 21"),
        ("train_classes=965", "--set: train_classes: glyphs has 964 background classes, found 965"),
        (
            "val_size=5",
            "--set: val_size: validation needs examples that training leaves over; set train_size below 20",
        ),
        ("train_size=0.04", "--set: train_size: leaves no example of a class to train on, of 20"),
        ("val_examples=21", "--set: val_examples: leaves no example of a class to train on, of 20"),
        ("augment=true", "--set: augment: augmentation is not available for glyphs; remove it"),
        (
            "batch_size=21",
            "train.yml:1: num_batches: batch_size x num_batches = 21 examples of one class, but training has 20; "
            "or set replacement: true",
        ),
        ("seeds=[1, 2, 1]", "--set: seeds: 1 is listed twice; remove one"),
        ("inner_lrs=[0.1, 0.1]", "--set: inner_lrs: 0.1 is listed twice; remove one"),
        (
            "train_together=true",
            "--set: train_together: needs several trainings: set seeds, for example [1, 2, 3], "
            "or inner_lrs, for example [0.1, 0.05]",
        ),
        (
            "outer_lr_scheduler_args.T_max=100",
            "--set: outer_lr_scheduler_args: is without an outer_lr_scheduler that they are for",
        ),
        ("ema_decay=1.0", "--set: ema_decay: must be less than 1, found 1.0"),
        ("ema_decay=0.0", "--set: ema_decay: must be greater than 0, found 0.0"),
        ("deterministic=mostly", '--set: deterministic: must be true or false, found "mostly"'),
        ("outer_lr_scheduler_args=5", "--set: outer_lr_scheduler_args: must be a mapping (key: value), found 5"),
        ("outer_lr_schedule=StepLR", "--set: outer_lr_schedule: unknown key; did you mean 'outer_lr_scheduler'?"),
        (
            "model_args.num_classes=963",
            "--set: model_args: num_classes is 963, but there are 964 training classes",
        ),
    ],
)
def test_a_training_that_cannot_be_is_refused(problems, override: str, message: str) -> None:
    assert problems(BASE, override) == [message]


@pytest.mark.parametrize(
    ("overrides", "keys", "words"),
    [
        (("few_shot={shots: 18, queries: 5}",), ["few_shot"], ["23", "20", "few_shot: {ways: 20"]),
        (("few_shot={ways: 965}",), ["few_shot"], ["965", "964"]),
        (("few_shot.posterior=map",), ["few_shot"], ["posterior", "prototypes", "metric"]),
        (("few_shot.way=5",), ["few_shot.way"], ["ways"]),
        (("rotations=[0, 45]",), ["rotations[1]"], ["45", "90"]),
        (("keep_best=validation",), ["keep_best"], ["964", "train_classes"]),
        (("keep_best=validation", "train_classes=963"), ["keep_best"], ["963 of 964"]),
        (("inner_lrs=[0.1, 0.2]",), ["inner_lrs"], ["inner loop", "prototypes"]),
        (("patience=3",), ["patience"], ["keep_best: validation"]),
        (("train_method=meta", "rotations=[0, 90]"), ["model_args"], ["1000", "1928", "964 by 2 rotations"]),
        (("train_method=meta", "sample_method=sequential", "tasks=965", "num_batches=5"), ["tasks"], ["965", "964"]),
    ],
)
def test_what_a_few_shot_training_cannot_do_is_refused(problems, overrides, keys: list[str], words: list[str]) -> None:
    found = problems(BASE + "train_method: prototypes\n", *overrides)
    assert [line.split(": ")[1] for line in found] == keys
    assert [word for word in words if word not in found[0]] == []


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (["inner_momentum=1.5"], "inner_momentum", "less than 1, found 1.5"),
        (["inner_optimizer=adam"], "inner_optimizer", "meta-sgd"),
        (["inner_momentum=0.9", "engine=sweep"], "engine", "sweep takes plain SGD steps alone, without inner_momentum"),
        (["inner_optimizer=meta-sgd", "engine=native"], "engine", "plain SGD steps alone, without inner_optimizer"),
        (["inner_optimizer=meta-sgd", "train_method=reptile"], "inner_optimizer", "meta or meta-first-order"),
        (["inner_optimizer=meta-sgd", "train_method=sequential_episodic"], "inner_optimizer", "meta-first-order"),
    ],
)
def test_an_inner_loop_that_cannot_be_is_refused(problems, overrides, key: str, words: str) -> None:
    [problem] = problems(BASE, *overrides)
    assert problem.startswith(f"--set: {key}: ")
    assert words in problem


def test_a_graph_on_a_cpu_is_refused(problems) -> None:
    assert problems(BASE, "engine=graph", "device=cpu") == [
        "--set: engine: graph needs a GPU, but device is cpu; use engine: auto"
    ]


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["precision=bf16-mixed", "engine=sweep"], "engine sweep computes in float32 alone"),
        (["precision=bf16-mixed", "engine=native"], "engine native computes in float32 alone"),
        (["precision=tf32", "device=cpu"], "tf32 needs an NVIDIA GPU"),
        (["precision=half"], "bf16-mixed"),
    ],
)
def test_a_precision_that_engine_or_device_does_not_have_is_refused(problems, overrides, reason: str) -> None:
    [problem] = problems(BASE, *overrides)
    assert problem.startswith("--set: precision: ")
    assert reason in problem


def test_training_keeps_to_the_images_it_may_use(problems) -> None:
    assert problems(BASE, "imgs_per_class=10", "train_size=11", "num_batches=3") == [
        "--set: train_size: a class of glyphs has 10 examples, found 11"
    ]


def test_something_must_be_left_to_learn_from(problems) -> None:
    assert problems(BASE, "remember_only=true", "remember_size=0") == [
        "--set: remember_only: leaves nothing to learn from when remember_size is 0"
    ]


def test_the_inner_loop_may_mix_classes_and_then_needs_no_more_of_one(load) -> None:
    assert load(BASE, "sample_method=uniform", "batch_size=30").config.batch_size == 30


def test_the_inner_loop_may_not_mix_more_examples_than_there_are(problems) -> None:
    found = problems(
        BASE, "sample_method=uniform", "batch_size=50", "train_classes=10", "train_size=10", "num_batches=3"
    )
    assert found == [
        "--set: num_batches: batch_size x num_batches = 150 different examples, but the training classes have 100"
    ]


def test_a_step_of_shifts_needs_shifts(problems, load) -> None:
    message = "--set: eval.a.shift_step: is without shifts, the number of steps; add shifts: 2"
    assert problems(FLAVOR, "eval.a.shift_step=3") == [message]
    assert load(FLAVOR, "eval.a.shift_step=3", "eval.a.shifts=2").config.eval["a"].shift_step == 3


@pytest.mark.parametrize("dataset", ["mini-imagenet", "omniimage20", "omniimage100"])
def test_photographs_may_be_augmented(load, dataset: str) -> None:
    assert load(f"dataset: {dataset}\nmodel: sanml\n", "augment=true", "num_batches=5").config.augment


def test_a_model_is_evaluated_on_images_with_as_many_channels(problems) -> None:
    assert problems(FLAVOR, "eval.a.dataset=mini-imagenet", "eval.a.classes=20") == [
        "--set: eval.a.dataset: mini-imagenet has images of 3 channels, the model takes those of 1; add channels: 1 to "
        "convert them"
    ]
    assert problems(FLAVOR, "eval.a.channels=3") == ["--set: eval.a.channels: the model takes images of 1, found 3"]


@pytest.mark.parametrize(
    ("trained", "evaluated", "notices"),
    [("omniimage20", "mini-imagenet", 1), ("omniimage20", "omniimage100", 0), ("glyphs", "omniglot", 0)],
)
def test_relatives_of_imagenet_are_told_to_share_classes(load, trained: str, evaluated: str, notices: int) -> None:
    text = f"dataset: {trained}\nmodel: sanml\neval:\n  a: {{dataset: {evaluated}, classes: 20}}\n"
    found = load(text, "train_size=15", "eval.a.train_examples=10").notices
    assert len(found) == notices
    assert all("share classes of ImageNet" in notice for notice in found)


def test_another_data_set_is_resized_to_what_the_model_takes(load) -> None:
    text = "dataset: omniimage100\nmodel: sanml\nim_size: 64\neval:\n  a: {dataset: mini-imagenet, classes: 20}\n"
    config = load(text, "num_batches=5").config
    assert config.eval_request(config.eval["a"]).size == 64


def test_a_training_that_ends_before_its_epochs_is_told(load) -> None:
    text = "dataset: glyphs\nmodel: anml\nepochs: 2000\neval_steps: "
    assert load(f"{text}[500, 1000]\n").notices == [
        "train.yml:4: eval_steps: training ends at the last of these, 1,000 of 2,000 steps; add one beyond the end "
        "(any number) to train, and evaluate, to the end"
    ]
    for enough in ("[500, 2000]", "[500, 10000]", "null"):
        assert load(f"{text}{enough}\n").notices == []


def test_each_way_of_training_has_a_schedule_of_its_own(problems, load) -> None:
    iid = BASE + "train_method: iid\nepochs: 10\n"
    assert problems(iid + "outer_lr_scheduler: StepLR\n") == [
        "train.yml:5: outer_lr_scheduler: is for training on episodes; for train_method: iid it is lr_scheduler "
        "(by epoch)"
    ]
    assert load(BASE + "lr_scheduler: StepLR\n").notices == [
        "train.yml:3: lr_scheduler: has no effect on train_method: meta, whose schedule is outer_lr_scheduler "
        "(by episode)"
    ]
    assert load(iid + "lr_scheduler: StepLR\n").notices == []
    assert load(BASE + "outer_lr_scheduler: StepLR\n").notices == []


def test_options_that_are_not_used_are_not_written_down(load) -> None:
    written = dump_config(load(BASE).config)
    assert [key for key in ("ema_decay", "outer_lr_scheduler", "deterministic") if key in written] == []


def test_iid_training_must_say_how_many_epochs(problems) -> None:
    (message,) = problems(BASE, "train_method=iid")
    assert "epochs: is required for train_method: iid" in message


def test_iid_training_has_no_inner_loop_to_check(load) -> None:
    assert load(BASE, "train_method=iid", "batch_size=256", "epochs=10").config.total_steps > 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("classes=660", "classes: glyphs has 659 evaluation classes, found 660"),
        ("classes=[5, 5]", "classes: 5 is listed twice; remove one"),
        ("lr=[0.1, 0.1]", "lr: 0.1 is listed twice; remove one"),
        (
            "train_examples=[1, 16]",
            "train_examples: train_examples + test_examples = 21, but a class of glyphs has 20 examples",
        ),
        ("dataset=glyph", 'dataset: "glyph" is not allowed; allowed: omniglot, glyphs, mini-imagenet, cifar-fs, '
         "omniimage20, omniimage100, images-folder; did you mean 'glyphs'?"),
        ("augment=true", "augment: augmentation is not available at evaluation; remove it"),
        ("im_size=84", "im_size: the model is trained on 28 pixels, found 84; leave im_size out"),
        ("eval_freq=1.5", "eval_freq: must be a whole number, found 1.5"),
        ("eval_freq=-1", "eval_freq: must be 0 or more, found -1"),
        ("eval_freq=[1, 0]", "eval_freq[1]: must be 1 or more, found 0"),
        ("eval_freq=[]", "eval_freq: must hold at least one value, found []"),
        ("eval_method=seqential", 'eval_method: "seqential" is not allowed; allowed: ' + ", ".join(PROTOCOLS) + "; "
         "did you mean 'sequential'?"),
    ],
)  # fmt: skip
def test_an_evaluation_that_cannot_be_is_refused(problems, override: str, message: str) -> None:
    assert problems(FLAVOR, f"eval.a.{override}") == [f"--set: eval.a.{message}"]


def test_shuffled_evaluation_is_scored_by_steps(problems) -> None:
    assert problems(FLAVOR, "eval.a.eval_method=iid", "eval.a.eval_freq=[1, 5]") == [
        "--set: eval.a.eval_freq: must be a number of optimizer steps for eval_method: iid; "
        "class counts are for sequential"
    ]


def test_no_more_classes_are_learned_than_the_model_has_outputs(problems) -> None:
    assert problems(FLAVOR, "train_classes=100", "model_args.num_classes=100") == [
        "train.yml:4: eval.a.classes: 600 classes do not fit the model's 100 outputs (model_args: num_classes)"
    ]


@pytest.mark.parametrize("name", ["a b", "../x", "-a", ".a", "a/b", "é"])
def test_a_flavor_must_be_able_to_name_files(problems, name: str) -> None:
    assert problems(f"{BASE}eval:\n  '{name}': {{runs: 1}}\n") == [
        f"train.yml:4: eval.{name}: a flavor's name is made of letters, digits, `-`, `_` and `.`, "
        "and begins with a letter or digit"
    ]


def test_a_flavor_may_not_be_called_like_the_training_jobs(problems) -> None:
    assert problems(BASE + "eval:\n  train: {runs: 1}\n") == [
        "train.yml:4: eval.train: a flavor cannot be called train; choose another name"
    ]


@pytest.mark.parametrize("name", ["1ft", "no-sgd", "A.b_c"])
def test_flavors_have_the_names_of_higheranml(load, name: str) -> None:
    assert list(load(f"{BASE}eval:\n  - {name}: {{runs: 1}}\n").config.eval) == [name]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("kernel_size: [3, 3]", "kernel_size: must be one value, or one for each of the 3 blocks, found [3, 3]"),
        ("num_filters: 0", "num_filters: must be 1 or more, found 0"),
        ("stride: null", "stride: must be a whole number, found null"),
        ("norm_type: ln", 'norm_type: "ln" is not allowed; allowed: bn, gn, in'),
        ("padding: -1", "padding: must be 0 or more, found -1"),
        ("norm_type: [bn, in]", 'norm_type: must be one value, or one for each of the 3 blocks, found ["bn", "in"]'),
        ("norm_type: [bn, ln, in]", 'norm_type[1]: "ln" is not allowed; allowed: bn, gn, in'),
    ],
)
def test_an_encoder_that_cannot_be_is_refused(problems, args: str, message: str) -> None:
    text = "dataset: glyphs\nmodel: classifier\nmodel_args:\n  encoder: convnet\n"
    assert problems(f"{text}  encoder_args: {{num_blocks: 3, {args}}}\n") == [
        f"train.yml:5: model_args.encoder_args.{message}"
    ]


RESNET = "dataset: glyphs\nmodel: classifier\nmodel_args:\n  encoder: resnet12\n"
METRIC = f"{RESNET}  classifier: metric-classifier\n"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("encoder_args.channels=[1, 2]", "encoder_args.channels: must hold 4 values, found [1, 2]"),
        ("encoder_args.norm_type=ln", 'encoder_args.norm_type: "ln" is not allowed; allowed: bn, gn, in'),
        ("encoder_args.width=8", "encoder_args.width: unknown key; allowed: channels, norm_type"),
        ("classifier_args.metric=cosin", 'classifier_args.metric: "cosin" is not allowed; allowed: cosine, distance, '
         "dot; did you mean 'cosine'?"),
        ("classifier_args.temperature=0", "classifier_args.temperature: must be greater than 0, found 0"),
    ],
)  # fmt: skip
def test_a_wrong_argument_of_any_part_is_refused(problems, override: str, message: str) -> None:
    assert problems(METRIC, f"model_args.{override}") == [f"--set: model_args.{message}"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("eval_method: zero_shot", "eval.a.eval_method: zero_shot (least squares) needs logits that are linear in the "
         "output weights; those of a metric-classifier are similarities; use sequential or iid"),
        ("reinit_method: lstsq", "eval.a.reinit_method: lstsq (least squares) needs logits that are linear in the "
         "output weights; those of a metric-classifier are similarities; use kaiming"),
        ("reinit_method: zero", "eval.a.reinit_method: zero would make every row of a metric-classifier like nothing; "
         "use kaiming"),
    ],
)  # fmt: skip
def test_a_start_that_a_metric_head_does_not_have_is_refused(problems, setting: str, message: str) -> None:
    assert problems(f"{METRIC}eval:\n  a:\n    {setting}\n") == [f"train.yml:8: {message}"]


def test_least_squares_of_a_linear_head_is_fine(load) -> None:
    assert load(f"{RESNET}eval: {{a: {{eval_method: zero_shot}}}}\n").config.eval["a"].eval_method == "zero_shot"


def test_the_reference_engine_is_refused_for_batch_norms(problems, load) -> None:
    (message,) = problems(f"{RESNET}engine: reference\n")
    assert message.startswith("train.yml:5: engine: reference never updates the running statistics of a BatchNorm")
    assert load(f"{RESNET}engine: reference\n", "model_args.encoder_args.norm_type=gn")
    assert load(f"{RESNET}engine: reference\n", "train_method=meta-first-order")  # Which runs without it.
