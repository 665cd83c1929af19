"""The memory that is foretold of trainings and evaluations is a lower bound of what they take."""

import json
import subprocess
import sys
from pathlib import Path


def test_what_is_foretold_is_taken_by_every_engine_and_no_fifth_of_it() -> None:
    output = subprocess.check_output([sys.executable, "-m", "tests.train.memory_cases"], cwd=Path(__file__).parents[2])
    cases = json.loads(output.splitlines()[-1])
    ratios = {name: sum(case["parts"].values()) / case["grew"] for name, case in cases.items()}
    assert {name: ratio for name, ratio in ratios.items() if not 0.2 < ratio <= 1} == {}
