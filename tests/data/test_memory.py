"""Mini-ImageNet's 64 x 600 images take little memory: to be converted, loaded and drawn from."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc (Linux)")

LIMIT_MB = 300
SHAPE = (64, 600, 3, 84, 84)

# Loads what looks like a converted Mini-ImageNet and draws half of it in batches of an episode, all over the file.
DRAW = """
import sys
from pathlib import Path
import torch
from anml import data as load
from anml.config.evaluation import DataRequest
torch.set_num_threads(1)
load.array_file = lambda *request: Path(sys.argv[1])
data = load.load_images(DataRequest("mini-imagenet", "train", 84, None))
chosen = torch.randperm(data.num_classes * data.examples_per_class)[:16800]
for batch in chosen.split(84):
    images, labels = data.batch(batch // 600, batch % 600)
assert images.shape[1:] == (3, 84, 84) and data.images.shape == (64, 600, 3, 84, 84)
"""
# Converts images to an array of 272 MB.
CONVERT = """
import sys
from pathlib import Path
from anml.config.evaluation import DataRequest
from anml.data import array_file
file = array_file(DataRequest("images-folder", "train", 550, sys.argv[1], ("a", "b"), 150))
assert file.stat().st_size > 270_000_000
"""


def peak_mb(script: str, *arguments: object, **environment: str) -> int:
    """Return the largest resident memory of a python process that runs a script, in MB (getrusage counts pytest's)."""
    script += '\nprint(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])'
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False,
        cwd=Path(__file__).resolve().parents[2], env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1]) // 1024


@pytest.mark.slow
def test_drawing_from_the_whole_of_it_stays_below_the_limit(tmp_path: Path) -> None:
    # Zeros that take no room on the disk, but in memory once they are read or mapped.
    np.lib.format.open_memmap(tmp_path / "array.npy", mode="w+", dtype=np.uint8, shape=SHAPE)
    assert peak_mb(DRAW, tmp_path / "array.npy") < LIMIT_MB


@pytest.mark.slow
def test_conversion_does_not_hold_the_images(tmp_path: Path, make_images: Callable[..., Path]) -> None:
    make_images(tmp_path / "images", {"a": 150, "b": 150}, size=20)
    assert peak_mb(CONVERT, tmp_path / "images", ANML_CACHE=str(tmp_path / "cache")) < LIMIT_MB
    next((tmp_path / "cache").glob("*.npy")).unlink()  # pytest would keep it.
