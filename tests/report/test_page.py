import json
import re
from dataclasses import asdict, replace

import pandas as pd
import pytest

from anml.atomic import write_json
from anml.config.load import dump_config
from anml.evaluate.race import Stopped
from anml.jobs.job_status import JobStatus
from anml.jobs.plan import Job, Plan
from anml.jobs.process import this_process
from anml.jobs.status import log_tail, read_jobs
from anml.report.figures import read_training
from anml.report.tables import as_frame
from anml.report.write import FIGURES, write_report
from tests.report.conftest import invented_rows, report

TRACEBACK = "Traceback (most recent call last):\nRuntimeError: <out> of memory"


def page_of(builder) -> str:
    return write_report(builder.experiment).page.read_text(encoding="utf-8")


def words(page: str) -> str:
    """Return a page's text without tags, in one line."""
    return " ".join(re.sub(r"<[^>]*>", " ", page.split("</style>")[1]).split())


@pytest.fixture
def whole(build):
    return build().results().metrics(60).jobs()


def test_report_is_complete(whole):
    summary = write_report(whole.experiment)
    assert summary.page == whole.experiment.report / "index.html"
    names, figures = {path.name for path in whole.experiment.report.iterdir()}, {f"{name}.png" for name in FIGURES}
    # These results have no values of single classes, and measured nothing besides accuracy.
    figures -= {"accuracy-by-order.png", "forgetting.png", "confusions.png"}
    figures -= {"representation.png", "representation-tsne.png"}
    assert names == {"index.html", "summary.csv", "by-classes.csv", "results.parquet", "accuracy.txt", *figures}
    assert not list(whole.experiment.root.rglob(".new*"))
    for name in figures:
        assert (whole.experiment.report / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("no_figures")
def test_page_holds_the_table(whole):
    page = words(page_of(whole))
    assert "Fraction of right answers on 5 held-out drawings of each class" in page
    assert "flavor after 200 episodes after 600 episodes untrained chance" in page
    for point in write_report(whole.experiment).summary:
        assert f"{point.test_acc:.3f} ± {point.test_ci95:.3f}" in page
    assert "600 episodes, seed 1" in page
    assert "results as of 1970-01-01 00:0" in page
    assert "chosen on the very drawings that are reported" in page
    assert "What is missing" not in page


@pytest.mark.usefixtures("no_figures")
def test_page_tells_how_to_do_it_again(whole):
    page = words(page_of(whole))
    assert "launch_train.py -c configs/train-omni-anml.yml --project &#39;it&#39;&#34;&#39;&#34;&#39;s&#39;" in page
    assert "0123456789abcdef0123456789abcdef01234567" in page
    assert "inner_params:" in page


def test_page_needs_no_network_and_no_script(whole):
    page = page_of(whole)
    assert "http" not in page
    assert "<script" not in page
    assert "url(" not in page


@pytest.mark.usefixtures("no_figures")
def test_page_tells_results_of_different_code_apart(build, row):
    rows = [row(run=0), row(run=1, code="0123456789ab"), row(run=2, code="0123456789ab")]
    page = words(page_of(build().write("olft-step-000600", rows)))
    assert "1 trajectory by an earlier version, 2 trajectories by 0123456789ab." in page
    assert "Measured by different code" not in words(page_of(build().write("olft-step-000600", rows[1:])))


@pytest.mark.usefixtures("no_figures")
def test_best_accuracies_are_those_of_the_last_checkpoint(whole):
    summary = write_report(whole.experiment)
    best = summary.best_accuracies()
    assert set(best) == {"test_acc/no-sgd", "test_acc/olft", "best_lr/olft"}
    table = as_frame(summary.summary)
    last = table[(table["flavor"] == "olft") & (table["checkpoint_step"] == 600)]
    assert best["test_acc/olft"] == last["test_acc"].item()
    assert best["best_lr/olft"] == last["lr"].item()


def test_written_twice_it_is_the_same_to_the_byte(whole):
    def files():
        write_report(whole.experiment)
        return {path.name: path.read_bytes() for path in whole.experiment.report.iterdir()}

    assert files() == files()


@pytest.mark.usefixtures("no_figures")
def test_failed_job_is_on_the_page_with_the_end_of_its_log(whole):
    whole.jobs(olft_step_000200="failed")
    log = whole.experiment.job("olft-step-000200").log
    log.write_text("".join(f"step {number} of many\n" for number in range(500)) + TRACEBACK, encoding="utf-8")
    (whole.experiment.results / "olft-step-000200.csv").unlink()
    page = page_of(whole)
    assert "olft-step-000200: failed" in page
    assert "RuntimeError: &lt;out&gt; of memory" in page
    assert "step 499 of many" in page
    assert "step 100 of many" not in page
    assert "olft, after 200 episodes: no results" in page
    assert "1 of 8 jobs did not succeed" in page
    assert page.index("RuntimeError") < page.index("<h2>Accuracy</h2>")


@pytest.mark.usefixtures("no_figures")
def test_incomplete_sweep_is_named(whole):
    path = whole.experiment.results / "olft-step-000600.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if ",3,1," not in line))  # Run 3 of 0 to 3.
    assert "olft, after 600 episodes: 9 of 12 trajectories" in words(page_of(whole))


@pytest.mark.usefixtures("no_figures")
def test_names_are_escaped(build):
    builder = build(project="a&b", group='<img src=x onerror="alert(1)">').results().metrics(20).jobs()
    page = report(builder).page.read_text(encoding="utf-8")
    experiments = builder.experiment.root.parent.parent
    indexes = [path.read_text() for path in (experiments / "index.html", experiments / "a&b" / "index.html")]
    for text in (page, *indexes):
        assert "<img src=x" not in text
        assert "&lt;img src=x onerror=&#34;alert(1)&#34;&gt;" in text
    assert 'href="a%26b/%3Cimg%20src%3Dx%20onerror%3D%22alert%281%29%22%3E/report/index.html"' in indexes[0]


@pytest.mark.usefixtures("no_figures")
def test_nothing_to_report_yet(build):
    builder = build().jobs()
    summary = write_report(builder.experiment)
    assert summary.summary == []
    assert summary.best_accuracies() == {}
    assert "There are no results yet." in summary.page.read_text()
    assert (builder.experiment.report / "accuracy.txt").read_text() == "No results yet.\n"


def test_no_figure_is_left_of_results_that_are_gone(whole):
    write_report(whole.experiment)
    for path in whole.experiment.results.iterdir():
        path.unlink()
    write_report(whole.experiment)
    assert {path.name for path in whole.experiment.report.glob("*.png")} == {"training.png"}


@pytest.mark.usefixtures("no_figures")
def test_unreadable_config_is_said_and_the_rest_is_reported(whole):
    whole.experiment.config_file.write_text("dataset: nonsense\n")
    page = words(page_of(whole))
    assert "config.yml could not be read" in page
    assert "± " in page


def test_the_last_line_of_a_training_tells_its_speed_and_what_its_gpu_did(build):
    builder = build().metrics(40).jobs()
    line = json.loads(builder.experiment.metrics().read_text().splitlines()[-1])
    line |= {"step": line["step"] + 1, "gpu_gb": 1.25, "gpu_percent": 93, "gpu_kilojoules": 412.3}
    with builder.experiment.metrics().open("a") as file:
        file.write(json.dumps(line) + "\n")
    told = "6.5 steps per second, GPU memory at most 1.25 GB, GPU 93% busy, 412 kJ in the last job."
    assert told in words(page_of(builder))


def test_folder_without_anything(tmp_path, build):
    builder = build()
    builder.experiment.environment_file.unlink()
    builder.experiment.config_file.unlink()
    assert "There are no results yet." in page_of(builder)


@pytest.mark.usefixtures("no_figures")
def test_several_seeds(build):
    builder = build(seeds=(1, 2, 3)).results().metrics(40).jobs()
    page = words(page_of(builder))
    assert "seeds 1, 2 and 3, each trained on its own" in page
    assert "over the trained seeds&#39; means" in page
    assert "mean of 12 runs of 3 seeds" in page


def test_several_inner_rates_have_a_table_each(build):
    builder = build(inner_lrs=(0.1, 0.05), seeds=(1, 2)).results().metrics(40).jobs()
    write_report(builder.experiment)
    page = (builder.experiment.report / "index.html").read_text()
    headings = [line for line in page.splitlines() if line.startswith("<h3>anml-inner-lr-")]
    assert [line.split(":")[0] for line in headings] == ["<h3>anml-inner-lr-0.05", "<h3>anml-inner-lr-0.1"]
    assert "Last of inner_lr 0.05, seed 2" in page
    assert "inner learning rates 0.1 and 0.05, each trained on its own" in page
    assert "no results" not in page


@pytest.mark.usefixtures("no_figures")
def test_inner_rates_are_listed_by_their_value(build):
    """As text, 1e-05 would be the largest, and 0.1 shorter and so smaller than 0.05."""
    builder = build(inner_lrs=(0.1, 0.00001, 0.05), seeds=(1, 2)).results(["olft"]).metrics(20).jobs()
    write_report(builder.experiment)
    page = (builder.experiment.report / "index.html").read_text()
    headings = [line.partition(":")[0] for line in page.splitlines() if line.startswith("<h3>anml-inner-lr-")]
    in_order = [f"anml-inner-lr-{rate}" for rate in ("1e-05", "0.05", "0.1")]
    assert headings == [f"<h3>{name}" for name in in_order]
    for name in ("summary.csv", "by-classes.csv"):
        table = pd.read_csv(builder.experiment.report / name)
        assert list(table["model"].unique()) == in_order
        assert list(table["inner_lr"].unique()) == [1e-5, 0.05, 0.1]
    trainings = [log.name for log in read_training(builder.experiment, builder.config.trainings)]
    assert trainings == [f"inner_lr {rate}, seed {seed}" for rate in ("1e-05", "0.05", "0.1") for seed in (1, 2)]


def test_the_best_of_several_models_is_named_where_one_number_stands_for_them(build):
    builder = build(inner_lrs=(0.05, 0.1)).results(["olft"]).jobs()
    better, last = builder.config.trainings[1], builder.config.checkpoint_steps[-1]
    rows = invented_rows(builder.config.for_training(better), "olft", last, seed=1)
    path = builder.experiment.result("olft", last, better.tag)
    builder.write(path.stem, [replace(row, test_acc=0.99) for row in rows])
    accuracies = report(builder).best_accuracies()
    assert accuracies["test_acc/olft"] == pytest.approx(0.99)
    assert accuracies["best_model/olft"] == "anml-inner-lr-0.1"
    index = (builder.experiment.root.parent / "index.html").read_text()
    assert '<span class="small">anml-inner-lr-0.1</span>' in index
    assert "anml-inner-lr-0.05" not in index


def test_jobs_that_cannot_speak_for_themselves(build):
    builder = build()
    jobs = (
        Job("killed", "train", ()),
        Job("waits", "evaluate", (), after=("killed",)),
        Job("sweep", "evaluate", (), tasks=3),
        Job("report", "report", (), after=("killed", "waits", "sweep"), after_any=True),
    )
    write_json(builder.experiment.plan_file, {"jobs": Plan(jobs).to_json()})
    builder.status(jobs[0], JobStatus(state="running", attempt=1, host="elsewhere", updated=1e12))
    for task, state in enumerate(("done", "failed", "done")):
        builder.status(jobs[2], JobStatus(state=state, attempt=1), task)  # type: ignore[arg-type]

    before = {job.label: job.state for job in read_jobs(builder.experiment)}
    assert before == {
        "killed": "running",
        "waits": "pending",
        "sweep[0]": "done",
        "sweep[1]": "failed",
        "sweep[2]": "done",
    }

    # Once the report job itself runs, everything else has ended, whatever it last said.
    builder.status(jobs[3], JobStatus(state="running", **asdict(this_process())))
    after = {job.label: (job.state, job.message) for job in read_jobs(builder.experiment)}
    assert after["killed"][0] == "failed"
    assert after["waits"] == ("skipped", "needs killed, which did not succeed")
    page = words(page_of(builder))
    assert "sweep (3 tasks) 2 done, 1 failed" in page
    assert "waits: needs killed, which did not succeed" in page


def test_a_job_that_fell_silent_has_failed(build):
    builder = build().jobs()
    builder.status(Job("olft-step-000200", "evaluate", ()), JobStatus(state="running", host="elsewhere", updated=1.0))
    assert {job.name: job.state for job in read_jobs(builder.experiment)}["olft-step-000200"] == "failed"


def test_log_tail_shows_what_a_terminal_would(tmp_path):
    log = tmp_path / "log.txt"
    log.write_bytes(b"start\n10%\r50%\r100%\n\x1b[31mred\x1b[0m\r\n\n\xff\n")
    assert log_tail(log) == "start\n100%\nred\n\ufffd"
    assert log_tail(tmp_path / "none") == ""


def test_metrics_that_are_damaged_are_left_out(build):
    experiment = build().metrics(20).experiment
    path = experiment.metrics()
    bad = ['{"step": 7, "lo', "[]", '{"loss": 1}', json.dumps({"step": 601, "loss": float("nan"), "accuracy": 0.5})]
    path.write_text(path.read_text() + "\n".join(bad))
    (log,) = read_training(experiment)
    assert [line["step"] for line in log.lines][-2:] == [600, 601]
    assert log.measure("loss")[0][-1] == 600
    assert log.measure("accuracy")[0][-1] == 601


@pytest.mark.usefixtures("no_figures")
def test_a_training_of_other_than_the_usual_protocol_is_told(build):
    options = {"outer_lr_scheduler": "CosineAnnealingLR", "outer_lr_scheduler_args": {"T_max": 600}, "ema_decay": 0.999}
    for builder, told in ((build(), False), (build(group="other"), True)):
        if told:
            config = builder.config.model_copy(update=options)
            builder.experiment.config_file.write_text(dump_config(config), encoding="utf-8")
        page = words(page_of(builder.results()))
        expected = "outer learning rate by CosineAnnealingLR (T_max 600), weights averaged (EMA, decay 0.999), seed 1"
        assert (expected in page) == told
        assert ("600 episodes, seed 1" in page) != told


def test_held_out_background_classes_are_called_so_and_kept_apart(build):
    builder = build("validated").results().jobs()
    summary = write_report(builder.experiment)
    page = words(summary.page.read_text(encoding="utf-8"))
    assert "on up to 30 classes never seen in training (held-out: held-out background classes), 4 runs each" in page
    assert page.index("20 classes learned from 15 drawings") < page.index(
        "30 held-out background classes learned from 15"
    )
    assert "for choosing rates and options, not for comparing with others" in page
    assert "What is missing" not in page
    text = (builder.experiment.report / "accuracy.txt").read_text()
    unseen, held_out = text.split("30 held-out background classes, 15 examples of each to learn")
    assert ("olft" in unseen, "\nheld-out " in unseen, "\nheld-out " in held_out) == (True, False, True)


@pytest.mark.usefixtures("no_figures")
def test_a_summary_in_short_is_of_evaluation_classes_where_there_are_any(build):
    builder = build("validated").results()
    short = report(builder).best_accuracies()
    assert {name for name in short if "acc" in name} == {"test_acc/no-sgd", "test_acc/olft"}
    assert "20 classes" in (builder.experiment.root.parent / "index.html").read_text()


@pytest.mark.usefixtures("no_figures")
def test_a_summary_in_short_of_held_out_classes_alone_says_so(build):
    builder = build("validated").results(["held-out"])
    short = report(builder).best_accuracies()
    assert {name for name in short if "acc" in name} == {"validation_acc/held-out"}
    assert "30 held-out background classes" in (builder.experiment.root.parent / "index.html").read_text()
    assert "on up to 30 held-out background classes" not in words(page_of(builder))  # Its config has others as well.


@pytest.mark.usefixtures("no_figures")
def test_without_held_out_classes_a_report_does_not_speak_of_any(whole):
    assert "background" not in words(page_of(whole))


@pytest.mark.usefixtures("no_figures")
def test_page_names_the_rates_that_a_race_did_not_continue_and_why(whole):
    stopped = {"shape_classes": 20, **Stopped(1e-9, 0, 3, 8, 0.1, 0.3125, 0.002)._asdict()}
    write_json(whole.experiment.results / "olft-step-000600.stopped.json", {"stopped": [stopped]})
    page = words(page_of(whole))
    assert "Rates that were not continued (1)" in page
    assert "olft-step-000600 20 1e-09 nothing 3 0.312 less than 0.1 with 8 classes, p 0.002" in page
