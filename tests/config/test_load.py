"""From a file and overrides to a checked config, and back to a file."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anml.config.evaluation import EvalConfig
from anml.config.load import dump_config, load_eval_configs, load_experiment_config, load_train_config
from anml.config.training import TrainConfig
from anml.config.yaml import dump_yaml
from anml.errors import ConfigError

BASE = "dataset: glyphs\nmodel: sanml\n"
OLFT = BASE + "eval:\n  - olft: {classes: 3}\n"
CLASSIFIER = "dataset: glyphs\nmodel: classifier\nmodel_args:\n  encoder: convnet\n"


def test_two_lines_make_a_config(load) -> None:
    config = load(BASE).config
    assert (config.dataset, config.model, config.inner_lr, config.eval) == ("glyphs", "sanml", 0.1, {})


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        (BASE + "inner_lrr: 1\n", "seed=1", "train.yml:3: inner_lrr: unknown key; did you mean 'inner_lr'?"),
        (BASE, "split=validation", "--set: split: belongs to an evaluation; write it below a flavor of eval"),
        (OLFT, "eval.olft.inner_lr=3", "--set: eval.olft.inner_lr: belongs to the training; write it at the top level"),
        (OLFT, "eval.olft.runz=3", "--set: eval.olft.runz: unknown key; did you mean 'runs'?"),
        (BASE + "eval: {clases: 3}\n", "seed=1", "train.yml:3: eval.eval.clases: unknown key; did you mean 'classes'?"),
        (BASE, "model_args.rln=3", "--set: model_args.rln: unknown key; did you mean 'rln_chs'?"),
        (
            CLASSIFIER + "  encoder_args:\n    num_filter: 3\n", "seed=1",
            "train.yml:6: model_args.encoder_args.num_filter: unknown key; did you mean 'num_filters'?",
        ),
        (
            CLASSIFIER + "  classifier_args: {classes: 3}\n", "seed=1",
            "train.yml:5: model_args.classifier_args.classes: unknown key; did you mean 'num_classes'?",
        ),
        (
            CLASSIFIER, "model_args.encoder=convnett",
            "--set: model_args.encoder: \"convnett\" is not allowed; allowed: convnet, anml-encoder, "
            "resnet12, resnet12-wide, resnet18, resnet34, resnet50, resnet101, resnet152, resnext50_32x4d, "
            "resnext101_32x8d, wide_resnet50_2, wide_resnet101_2, vgg16_encoder, vgg16_bn_encoder, FILE.py:NAME; "
            "did you mean 'convnet'?",
        ),
        (BASE, "model=classifier", "train.yml:1: model_args.encoder: is required but missing"),
    ],
)  # fmt: skip
def test_a_typo_is_found_at_every_level(problems, text: str, override: str, message: str) -> None:
    assert problems(text, override) == [message]


@pytest.mark.parametrize("key", ["model", "dataset", "model_args", "eval", "eval_steps", "inner_params", "seeds"])
@pytest.mark.parametrize("value", ["[[1]]", "{a: [b]}", "1.5", "true"])
def test_no_type_of_value_is_anything_but_a_problem_with_its_line(problems, key: str, value: str) -> None:
    lines = [line for line in BASE.splitlines() if not line.startswith(f"{key}:")]
    text = "\n".join([*lines, f"{key}: {value}\n"])
    assert all(f"train.yml:{len(lines) + 1}: " in problem for problem in problems(text))


@pytest.mark.parametrize("part", ["encoder", "classifier", "encoder_args", "classifier_args"])
@pytest.mark.parametrize("value", ["[1]", "3", "{a: b}"])
def test_parts_of_a_classifier_of_another_type_are_problems(problems, part: str, value: str) -> None:
    assert problems(CLASSIFIER, f"model_args.{part}={value}")[0].startswith(f"--set: model_args.{part}")


def test_every_problem_of_a_file_and_its_overrides_comes_at_once(problems) -> None:
    text = "dataset: glyph\nmodel: sanml\nmodel_args: {rln: 1}\nseed: x\neval:\n  - a: {lr: -1}\n  - b: {lrr: 1}\n"
    assert [problem.split(": ")[:2] for problem in problems(text, "epochs=0", "bad", "eval.c.lr=1")] == [
        ["--set bad", "write it as key=value, for instance --set inner_lr=0.05"],
        ["--set eval.c.lr", "there is no flavor 'c'; there are"],
        ["train.yml:1", "dataset"],
        ["--set", "epochs"],
        ["train.yml:4", "seed"],
        ["train.yml:3", "model_args.rln"],
        ["train.yml:6", "eval.a.lr"],
        ["train.yml:7", "eval.b.lrr"],
    ]


def test_a_flavor_is_checked_whatever_else_is_wrong(problems) -> None:
    assert len(problems(BASE + "seed: x\neval:\n  - a: {classes: 700}\n  - b: {train_examples: 20}\n")) == 3


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("inner_lr=1e-3", 0.001), ("inner_lr = 0.5", 0.5), ("inner_params=[rln, fc]", ("rln", "fc")),
        ("inner_params=rln", ("rln",)), ("model_args.num_classes=2000", {"num_classes": 2000}),
        ("model_args={num_classes: 1000}", {"num_classes": 1000}), ("eval_steps=[1, 2]", (1, 2)),
        ("lr_scheduler_args.gamma=0.5", {"gamma": 0.5}), ("project=a=b", "a=b"), ("train_size=", None),
        ("model_name=2024-01-31", "2024-01-31"),
    ],
)  # fmt: skip
def test_set_overrides_a_key(load, override: str, value: object) -> None:
    assert getattr(load(BASE + "model_args:\n", override).config, override.split("=")[0].split(".")[0].strip()) == value


def test_set_reaches_into_a_flavor(load) -> None:
    assert load(OLFT, "eval.olft.runs=3", "eval.olft.lr=[0.1, 0.2]").config.eval["olft"].lr == (0.1, 0.2)


def test_the_last_of_two_overrides_holds(load) -> None:
    assert load(BASE, "seed=1", "seed=2").config.seed == 2


def test_an_option_of_the_command_line_overrides_both(write) -> None:
    path = write("train.yml", BASE + "seed: 1\n")
    assert load_train_config(path, ["seed=2"], {"seed": 3, "group": None}).config.seed == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner_lr", "--set inner_lr: write it as key=value, for instance --set inner_lr=0.05"),
        ("=3", "--set =3: write it as key=value, for instance --set inner_lr=0.05"),
        ("inner..lr=3", "--set inner..lr=3: write it as key=value, for instance --set inner_lr=0.05"),
        ("eval.olf.runs=3", "--set eval.olf.runs: there is no flavor 'olf'; did you mean 'olft'?"),
        ("dataset.x=3", '--set dataset.x: dataset is "glyphs", so nothing inside it can be set'),
        ("seed.x=3", '--set: seed: must be a whole number, found {"x": 3}'),
        ("project=!include no.yml", "--set project: !include no.yml: there is no file no.yml"),
        ("eval={olft: {runz: 3}}", "--set: eval.olft.runz: unknown key; did you mean 'runs'?"),
    ],
)
def test_a_wrong_override_is_explained(problems, override: str, message: str) -> None:
    assert problems(OLFT, override) == [message]


def test_an_override_that_is_no_yaml_is_explained(problems) -> None:
    assert problems(BASE, "eval_steps=[1, 2")[0].startswith("--set eval_steps: not valid YAML: ")


@pytest.mark.parametrize("text", ["- 1\n", "hello\n", "null\n", "3\n"])
def test_a_config_is_a_mapping(problems, text: str) -> None:
    assert problems(text)[0].startswith("train.yml:1: a config is made of `key: value` lines, found ")


def test_an_evaluation_config_is_no_training_config(problems) -> None:
    assert problems("dataset: glyphs\nclasses: 3\nruns: 2\ntrain_examples: 3\n") == [
        "train.yml:1: this is an evaluation config (classes, runs, train_examples, ...); "
        "give one like configs/train-omni-anml.yml"
    ]


def test_a_training_config_is_no_evaluation_config(eval_problems) -> None:
    assert eval_problems(BASE + "model_args: {}\nepochs: 3\ninner_lr: 1\ntrain_size: 3\n") == [
        "eval.yml:1: this is a training config (model_args, inner_lr, train_size, ...); "
        "give one like configs/eval-omni-anml.yml"
    ]


def test_every_problem_of_an_evaluation_comes_at_once(eval_problems) -> None:
    assert eval_problems("dataset: glyphs\nclases: 3\nruns: x\n", "lr=0") == [
        "--set: lr: must be greater than 0, found 0",
        'eval.yml:3: runs: must be a whole number, found "x"',
        "eval.yml:2: clases: unknown key; did you mean 'classes'?",
    ]


def test_paths_are_made_absolute(load, here: Path) -> None:
    config = load(BASE + "data_path: data\neval:\n  - a: {data_path: other}\n  - b: {runs: 1}\n").config
    assert [config.data_path, config.eval["a"].data_path, config.eval["b"].data_path] == [
        str(here / "data"), str(here / "other"), str(here / "data"),
    ]  # fmt: skip


def test_one_flavor_of_an_included_list_is_changed(load, write) -> None:
    write("flavors.yml", "- olft: {runs: 3, classes: 4}\n- unfrozen: {runs: 3, classes: 4, opt_params: all}\n")
    config = load(BASE + "eval: !include flavors.yml\neval.olft.runs: 5\n").config
    assert [(flavor.runs, flavor.classes) for flavor in config.eval.values()] == [(5, (4,)), (3, (4,))]


def test_a_mistake_in_a_changed_flavor_has_its_line(problems, write) -> None:
    write("flavors.yml", "- olft: {runs: 3, classes: 4}\n")
    lines = (BASE + "eval: !include flavors.yml\n").count("\n")
    assert problems(BASE + "eval: !include flavors.yml\neval.olft.runs: 0\neval.olft.rnus: 1\n") == [
        f"train.yml:{lines + 1}: eval.olft.runs: must be 1 or more, found 0",
        f"train.yml:{lines + 2}: eval.olft.rnus: unknown key; did you mean 'runs'?",
    ]


def test_the_home_folder_may_be_written_as_a_tilde(write) -> None:
    path = write("eval.yml", "dataset: glyphs\ndata_path: ~/data\n")
    assert load_eval_configs(path)[0].config.data_path == str(Path("~/data").expanduser())


def test_the_data_path_comes_from_the_environment_when_absent(load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANML_DATA", "/data/of/all")
    assert load(BASE).config.data_path == "/data/of/all"


def test_a_flavor_takes_over_the_training_data_set_and_size(load) -> None:
    flavor = load(OLFT + "im_size: 20\n").config.eval["olft"]
    assert (flavor.dataset, flavor.im_size) == ("glyphs", 20)


def test_a_null_inside_model_args_survives_a_dump(load) -> None:
    args = "  encoder_args: {norm_type: null, pool_size: [2, null, 0, 2]}\n"
    assert "norm_type: null" in dump_config(load(CLASSIFIER + args).config)


def test_a_dumped_evaluation_loads_to_the_same(write) -> None:
    text = "dataset: glyphs\nlr: [1e-5, 0.1]\neval_freq: [1, 5]\nmodel: 1e3x\n"
    first = load_eval_configs(write("a.yml", text))[0].config
    assert load_eval_configs(write("b.yml", dump_config(first)))[0].config == first


# What a person may call things; YAML could take some of these names for numbers, dates or nothing at all.
names = st.text(min_size=1, max_size=8) | st.sampled_from(
    ["1e3", "null", "yes", "~", "2024-01-31", "010", "#a", "a: b"]
)
rates = st.floats(min_value=1e-30, max_value=1e30)
counts = st.integers(min_value=1, max_value=10**9)
keys = st.from_regex(r"[a-z_]{1,8}", fullmatch=True) | st.sampled_from(["null", "yes", "1e3", "12"])
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | names
anything = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))
arguments = st.dictionaries(keys, anything, max_size=3)
selectors = st.lists(names, min_size=1, max_size=3)

MODELS = st.sampled_from(
    [
        {"model": "anml", "model_args": {"rln_chs": 8, "pool_nm_output": True}},
        {"model": "oml", "model_args": {"strides": [2, 1]}, "initialisation": "kaiming"},
        {"model": "sanml"},
        {"model": "nonml", "model_args": {"num_blocks": None, "pool_nm_output": None}},
        {
            "model": "classifier",
            "model_args": {
                "encoder": "convnet",
                "encoder_args": {"num_blocks": 3, "norm_type": None, "pool_size": [2, None, 0]},
                "classifier_args": None,
            },
        },
    ]
)
FLAVORS = st.fixed_dictionaries(
    {"dataset": st.just("glyphs"), "im_size": st.just(28)},
    optional={
        "train_examples": st.lists(st.integers(1, 15), min_size=1, max_size=3, unique=True),
        "test_examples": st.integers(1, 5),
        "classes": st.integers(1, 600),
        "lr": st.lists(rates, min_size=1, max_size=3, unique=True),
        "eval_method": st.sampled_from(["sequential", "zero_shot"]),
        "reinit_method": st.sampled_from(["kaiming", "zero", "lstsq"]),
        "adam_betas": st.none() | st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2),
        "split": st.sampled_from([None, "eval"]),
        "deterministic": st.none() | st.booleans(),
        "reinit_bias": st.sampled_from(["zero", "keep"]),
        "reinit_params": selectors,
        "opt_params": selectors,
        "init_size": st.integers(0, 9000),
        "epochs": counts,
        "batch_size": counts,
        "eval_freq": st.none() | st.integers(0, 600) | st.lists(st.integers(1, 600), min_size=1, max_size=3),
        "runs": counts,
        "seed": st.integers(),
        "model": names,
    },
)
TRAININGS = st.fixed_dictionaries(
    {
        "dataset": st.just("glyphs"),
        "im_size": st.just(28),
        "eval": st.dictionaries(
            st.from_regex(r"[a-z0-9-]{0,5}-x", fullmatch=True).filter(lambda n: n[0] != "-"), FLAVORS, max_size=3
        ),
    },
    optional={
        **dict.fromkeys(("project", "entity", "group", "cluster", "model_name", "output_layer", "optimizer"), names),
        **dict.fromkeys(("inner_params", "outer_params"), selectors),
        **dict.fromkeys(("optimizer_args", "lr_scheduler_args"), arguments),
        **dict.fromkeys(("inner_lr", "outer_lr", "lr", "max_grad_norm"), rates),
        **dict.fromkeys(("epochs", "max_steps", "save_freq", "log_freq", "train_cycles", "lobo_size"), counts),
        **dict.fromkeys(("lobotomize", "remember_only", "eval_untrained"), st.booleans()),
        "train_method": st.sampled_from(["meta", "meta-first-order", "sequential_episodic"]),
        "train_size": st.integers(10, 20),
        "imgs_per_class": st.just(20),
        "train_classes": st.integers(1, 964),
        "num_batches": st.integers(1, 10),
        "remember_size": st.integers(1, 64),
        "lr_scheduler": st.none() | names,
        "outer_lr_scheduler": names,
        "ema_decay": st.none() | st.floats(0, 1, exclude_min=True, exclude_max=True),
        "lobo_rate": st.integers(0, 5),
        "seed": st.integers(),
        "seeds": st.lists(st.integers(), min_size=1, max_size=3, unique=True),
        "device": st.sampled_from(["auto", "cpu", "cuda"]),
        "engine": st.sampled_from(["auto", "fast", "reference"]),
        "eval_steps": st.lists(counts, min_size=1, max_size=3),
    },
)


@settings(deadline=None, max_examples=60)
@given(settings_of_model=MODELS, training=TRAININGS)
def test_a_dumped_config_loads_to_the_same(
    settings_of_model: dict[str, Any], training: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = TrainConfig.model_validate({**training, **settings_of_model})
    path = tmp_path_factory.getbasetemp() / "dumped.yml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_train_config(path).config == config


# Keys where they belong or not, with any value: what a config may look like after a hard day.
some_keys = st.sampled_from([*TrainConfig.model_fields, *EvalConfig.model_fields, "encoder", "encoder_args", "a", "<<"])
some_values = anything | st.sampled_from(["glyphs", "anml", "classifier", "convnet", "seq", "iid", "all"])
disorder = st.recursive(some_values, lambda inner: st.dictionaries(some_keys, inner, max_size=4), max_leaves=8)


@settings(deadline=None, max_examples=100)
@given(data=st.dictionaries(some_keys, disorder, max_size=6), base=st.booleans(), override=st.tuples(some_keys, names))
def test_whatever_stands_in_a_config_is_bound_or_answered_in_words(
    data: dict[str, Any], base: bool, override: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "disorder.yml"
    path.write_text(dump_yaml({"dataset": "glyphs", "model": "classifier"} | data if base else data), encoding="utf-8")
    for load_config in (load_train_config, load_eval_configs):
        with contextlib.suppress(ConfigError):
            load_config(path, ["=".join(override)])


def test_a_config_that_does_not_name_a_split_is_written_as_ever(load) -> None:
    assert "\n    split:" not in dump_config(load("dataset: glyphs\nmodel: sanml\neval: {a: {runs: 1}}\n").config)


def test_a_validation_is_written_down_and_read_again(load, write) -> None:
    text = "dataset: glyphs\nmodel: sanml\ntrain_classes: 664\neval: {a: {split: validation, classes: 300}}\n"
    config = load(text, "data_path=here").config
    assert load_train_config(write("again.yml", dump_config(config))).config == config


def test_a_validation_by_hand_is_checked_as_far_as_it_goes_without_the_model(write, eval_problems) -> None:
    path = write("fine.yml", "dataset: glyphs\nsplit: validation\nclasses: 700\n")
    assert load_eval_configs(path)[0].config.is_validation
    assert len(eval_problems("dataset: glyphs\nsplit: validation\nclasses: 965\n")) == 1


ZAPPED = BASE + "train_method: iid\nepochs: 10\nlobo_rate: 1\nlobo_size: 9\n"


def test_the_scale_of_zapping_is_written_where_rows_are_re_drawn(load) -> None:
    assert "\nlobo_scale: all_rows\n" in dump_config(load(ZAPPED).config)
    assert "\nlobo_scale: each_row\n" in dump_config(load(ZAPPED, "lobo_scale=each_row").config)
    assert "lobo_scale" not in dump_config(load(ZAPPED, "lobo_size=0").config)
    assert "lobo_scale" not in dump_config(load(BASE).config)


def test_a_scale_of_zapping_that_nobody_knows_is_refused(problems) -> None:
    assert problems(ZAPPED + "lobo_scale: original\n") == [
        'train.yml:7: lobo_scale: "original" is not allowed; allowed: all_rows, each_row'
    ]


def test_an_experiment_from_before_the_scale_of_zapping_drew_each_row(load, write) -> None:
    new = dump_config(load(ZAPPED).config)
    old = new.replace("lobo_scale: all_rows\n", "")
    scales = [load_experiment_config(write("config.yml", text)).config.lobo_scale for text in (old, new)]
    assert scales == ["each_row", "all_rows"]


OML = "dataset: omni\nim_size: 84\nmodel: oml\n"
RESNET = "dataset: inet\ntrain_size: 500\nmodel: classifier\nmodel_args: {encoder: resnet18}\n"


@pytest.mark.parametrize(("text", "usual"), [(OML, "kaiming"), (RESNET, "fan_out"), (BASE, None)])
def test_the_first_weights_are_those_of_the_models_authors(load, write, text: str, usual: str | None) -> None:
    config = load(text).config
    assert config.initialisation == usual
    assert load(text, "initialisation=uniform").config.initialisation == "uniform"
    new = dump_config(config)
    old = new.replace(f"initialisation: {usual}\n", "")
    read = [load_experiment_config(write("config.yml", written)).config.initialisation for written in (old, new)]
    assert read == ["uniform" if usual else None, usual]


def test_a_model_that_varies_has_the_first_weights_of_its_authors(load) -> None:
    text = RESNET.replace("{encoder: resnet18}", "{encoder: convnet, classifier_args: {num_classes: 64}}")
    text += "vary: {model_args.encoder: [convnet, resnet18]}\n"
    for overrides, expected in (((), [None, "fan_out"]), (("initialisation=kaiming",), ["kaiming", "kaiming"])):
        config = load(text, *overrides).config
        assert [config.for_training(each).initialisation for each in config.trainings] == expected
