"""The plan's rules: segments, evaluations after their own segment, arrays, a report at the end."""

from anml.config.evaluation import EvalConfig
from anml.config.training import TrainConfig
from anml.jobs.plan import Plan, make_plan


def config(**changes: object) -> TrainConfig:
    base = {
        "dataset": "glyphs", "model": "anml", "epochs": 100, "eval_steps": [40, 100],
        "eval": {"olft": {"runs": 3, "lr": [0.1, 0.01], "classes": 10}, "no-sgd": {"eval_method": "zero_shot"}},
    }  # fmt: skip
    return TrainConfig.model_validate(base | changes)


def test_next_segment_trains_on_while_the_last_is_evaluated() -> None:
    plan = make_plan(config())
    assert plan.job("train-step-000100").after == ("train-step-000040",)
    assert plan.job("olft-step-000040").after == ("train-step-000040",)


def test_report_comes_last_whatever_became_of_the_others() -> None:
    plan = make_plan(config())
    report = plan.jobs[-1]
    assert report.after_any
    assert set(report.after) == {job.name for job in plan.jobs[:-1]}


def test_dependencies_come_before_dependents() -> None:
    choose = {"on": "validation", "by": ["lr", "checkpoint"], "flavor": "held-out"}
    held_out = {"classes": 10, "split": "validation"}
    flavors = {"held-out": held_out, "chosen": {"classes": 10, "choose": choose}, "no-sgd": {"eval_method": "iid"}}
    varied = {"seeds": [1, 2], "vary": {"outer_lr": [0.1, 0.01]}, "train_classes": 900, "eval_untrained": True}
    plan = make_plan(config(**varied, eval=flavors))
    for batches in (plan.batches(5), plan.batches(4)):
        seen: set[str] = set()
        for batch in batches:
            assert all(set(job.after) <= seen for job in batch)
            seen |= {job.name for job in batch}
    assert [len(batch) for batch in plan.batches(4)] == [4, 4, 4, 4, 4, 4, 4, 4, 4, 1]


def test_step_beyond_the_end_is_the_final_model_and_duplicates_collapse() -> None:
    names = [job.name for job in make_plan(config(eval_steps=[100, 200, 300])).jobs if job.kind == "train"]
    assert names == ["train-step-000100"]


def test_max_steps_ends_a_training_of_either_kind() -> None:
    episodes = config(max_steps=60, eval_steps=[40, 100])
    shuffled = config(max_steps=60, eval_steps=[40, 100], train_method="iid", epochs=2, batch_size=256)
    assert shuffled.model_copy(update={"max_steps": None}).total_steps == 2 * 76  # 964 classes of 20.
    for capped in (episodes, shuffled):
        names = [job.name for job in make_plan(capped).jobs if job.kind == "train"]
        assert names == ["train-step-000040", "train-step-000060"]
    assert config(max_steps=1000).total_steps == 100


def test_untrained_network_is_evaluated_once_when_asked_for() -> None:
    names = [job.name for job in make_plan(config(eval_untrained=True)).jobs]
    assert names.count("olft-step-000000") == 1


def test_large_sweep_is_cut_below_the_array_limit() -> None:
    jobs = [job for job in make_plan(config(), 1, 4).jobs if job.name.startswith("olft-step-000040")]
    assert [job.tasks for job in jobs] == [4, 2]
    assert [job.argv[-2:] for job in jobs] == [("--first-task", "0"), ("--first-task", "4")]


def test_sweep_that_fits_is_one_job() -> None:
    assert make_plan(config(), 6).job("olft-step-000040").tasks is None


def test_seeds_have_their_own_segments_and_evaluations() -> None:
    plan = make_plan(config(seeds=[3, 4]))
    assert plan.job("olft-step-000040-seed-4").after == ("train-step-000040-seed-4",)


def test_seeds_trained_together_are_one_job_that_the_evaluations_of_each_wait_for() -> None:
    plan = make_plan(config(seeds=[3, 4], train_together=True))
    trainings = [job for job in plan.jobs if job.kind == "train"]
    assert [(job.name, job.after) for job in trainings] == [
        ("train-step-000040", ()),
        ("train-step-000100", ("train-step-000040",)),
    ]
    assert all("--seed" not in job.argv for job in trainings)
    for seed in ("3", "4"):
        job = plan.job(f"olft-step-000040-seed-{seed}")
        assert job.after == ("train-step-000040",)
        assert job.argv[-2:] == ("--train-seed", seed)


def test_inner_rates_and_seeds_have_a_training_for_each_pair() -> None:
    plan = make_plan(config(seeds=[3, 4], inner_lrs=[0.1, 0.05]))
    trained = [job for job in plan.jobs if job.kind == "train" and not job.after]
    assert [job.name.removeprefix("train-step-000040-") for job in trained] == [
        f"inner-lr-{rate}-seed-{seed}" for rate in (0.1, 0.05) for seed in (3, 4)
    ]
    assert trained[-1].argv[-4:] == ("--inner-lr", "0.05", "--seed", "4")
    job = plan.job("olft-step-000040-inner-lr-0.05-seed-4")
    assert job.after == (trained[-1].name,)
    assert job.argv[-4:] == ("--train-inner-lr", "0.05", "--train-seed", "4")


def test_plan_survives_being_written_and_read() -> None:
    plan = make_plan(config(), 1, 4)
    assert Plan.from_json(plan.to_json()) == plan


def test_points_are_counted_as_the_sweep_makes_them() -> None:
    from anml.evaluate.sweep import sweep_trajectories

    for method in ("sequential", "iid", "zero_shot"):
        evaluation = EvalConfig(eval_method=method, lr=(0.1, 0.2), runs=3, classes=(5, 10), train_examples=(1, 2))
        assert evaluation.count_trajectories() == len(sweep_trajectories(evaluation))


def test_a_choice_comes_after_every_sweep_of_its_model_on_held_out_classes() -> None:
    sweep = {"runs": 2, "lr": [0.1, 0.01], "classes": 10}
    held_out = sweep | {"split": "validation"}
    choose = {"on": "validation", "by": ["lr"], "flavor": "held-out"}
    by_rate = sweep | {"choose": choose}
    by_both = sweep | {"choose": choose | {"by": ["lr", "checkpoint"]}}
    flavors = {"held-out": held_out, "by-rate": by_rate, "by-both": by_both}
    plan = make_plan(config(seeds=[1, 2], train_classes=900, eval=flavors), 3)
    sweeps = {job.name: job.tasks for job in plan.jobs if job.name.startswith("held-out")}
    assert set(sweeps.values()) == {2}
    assert plan.job("by-rate-step-000040-seed-1").after == tuple(name for name in sweeps if "000040" in name)
    assert set(plan.job("by-both-step-000100-seed-2").after) == set(sweeps)
    assert [job.name for job in plan.jobs if job.name.startswith("by-both")] == [
        "by-both-step-000100-seed-1", "by-both-step-000100-seed-2",
    ]  # fmt: skip
    assert all(job.tasks is None for job in plan.jobs if job.name.startswith("by-"))


def test_an_evaluation_that_depends_on_its_own_results_is_no_array() -> None:
    sweep = {"runs": 3, "lr": [0.1, 0.01], "classes": 10}
    flavors = {"raced": sweep | {"race": True}, "longer": sweep | {"until": {"half_width": 0.01, "at_most": 30}}}
    assert {job.tasks for job in make_plan(config(eval=flavors), 1).jobs} == {None}
