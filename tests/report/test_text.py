from anml.report.tables import best_rates, rate_results
from anml.report.text import WIDTH, accuracy_table


def test_table_has_flavors_down_and_checkpoints_across(row):
    rows = [
        row(flavor=flavor, checkpoint_step=step, run=run, test_acc=acc + 0.02 * run)
        for flavor, step, acc in [("olft", 0, 0.1), ("olft", 200, 0.4), ("olft", 600, 0.7), ("unfrozen", 600, 0.5)]
        for run in range(2)
    ]
    rows.append(row(flavor="no-sgd", protocol="zero_shot", lr=None, checkpoint_step=600, step=0))
    table = accuracy_table(best_rates(rate_results(rows, ("no-sgd", "olft", "unfrozen"))))
    assert table == (
        "Test accuracy: mean ± 95% interval of the mean @ the best learning rate\n"
        "\n"
        "20 classes, 15 examples of each to learn, 5 to test; 1 to 2 runs\n"
        "flavor    after 200 episodes     after 600 episodes     untrained              chance\n"
        "no-sgd    -                      0.500                  -                      0.0500\n"
        "olft      0.410 ± 0.127 @ 0.001  0.710 ± 0.127 @ 0.001  0.110 ± 0.127 @ 0.001  0.0500\n"
        "unfrozen  -                      0.510 ± 0.127 @ 0.001  -                      0.0500"
    )


def test_many_checkpoints_are_wrapped(row):
    rows = [
        row(flavor=flavor, checkpoint_step=step, run=run, test_acc=0.1 * run)
        for flavor in ("a-flavor-with-quite-a-long-name", "b")
        for step in range(0, 9000, 1000)
        for run in range(3)
    ]
    table = accuracy_table(best_rates(rate_results(rows)))
    assert max(map(len, table.splitlines())) <= WIDTH
    assert all(f"after {step:,} episodes" in table for step in range(1000, 9000, 1000))


def test_no_results():
    assert accuracy_table([]) == "No results yet."
