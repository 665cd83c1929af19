"""Sends W&B runs that jobs recorded offline: the files of all segments and requeues of one run as one file.

Each job that goes on with a run writes a file of its own, and `wandb sync` adds all lines of a file to what the service
has. So the steps that a job repeats (it went back to a checkpoint), and those sent before, are left out here.

Files are W&B's transaction logs: 7 bytes of a header, then blocks of 32 KiB in LevelDB's log format, whose records are
protocol buffers. https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

import itertools
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from math import inf
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

from anml.atomic import read_json, write_json
from anml.experiment import Experiment

_BLOCK_BYTES = 32768
# Of a chunk: checksum of kind and data, length, kind.
_HEADER = Struct("<IHB")
_START_BYTES = 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class Merged(NamedTuple):
    """All that was recorded of one W&B run. has_ended: its last job has."""

    records: list[Any]
    has_ended: bool

    @property
    def last_step(self) -> int:
        """The last step of its history, -1 without any."""
        return max((_step(record) for record in self.records if record.HasField("history")), default=-1)

    def line(self, what: str) -> str:
        name = next((record.run.display_name for record in self.records if record.HasField("run")), "?")
        up_to = f" up to step {self.last_step}" if self.last_step >= 0 else ""
        return f"{name}: {what}{up_to}" + ("" if self.has_ended else "; its job has not ended: sync again later")


def sync(experiment: Experiment) -> bool:
    """Send what was recorded offline and is not sent yet, and say what was left. Returns False when it failed."""
    changed: dict[Path, tuple[Merged, int]] = {}
    for run_id, files in recorded_files(experiment.wandb_dir / "wandb").items():
        target = experiment.wandb_dir / "sync" / f"offline-run-{run_id}" / f"run-{run_id}.wandb"
        merged, recorded, sent = merge(files), sum(file.stat().st_size for file in files), read_json(_sent_file(target))
        if recorded == sent.get("bytes"):
            print(merged.line("was sent before"))
        elif merged.records:
            _write(target, merged, files, sent)
            changed[target] = merged, recorded
    if changed:
        # Without --yes and paths, wandb asks questions, or takes the runs of the current folder.
        subprocess.run([sys.executable, "-m", "wandb", "sync", "--yes", *map(str, changed)], check=False)
    are_sent = [_note(target, merged, recorded) for target, (merged, recorded) in changed.items()]
    return all(are_sent)


def _note(target: Path, merged: Merged, recorded: int) -> bool:
    """Say whether a run was sent, and remember it. recorded: bytes in the files of its jobs."""
    is_sent = target.with_name(f"{target.name}.synced").exists()
    print(merged.line("sent" if is_sent else "NOT sent"))
    if is_sent:
        stats = sum(record.HasField("stats") for record in merged.records)
        write_json(_sent_file(target), {"bytes": recorded, "step": merged.last_step, "stats": stats})
    return is_sent


def recorded_files(folder: Path) -> dict[str, list[Path]]:
    """Return the files of every run, by its id and in order of time."""
    files: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("offline-run-*/run-*.wandb")):
        files.setdefault(file.stem.removeprefix("run-"), []).append(file)
    return files


def merge(files: Sequence[Path]) -> Merged:
    """Return one run out of the files of its segments, the earliest first.

    Of a step that two files have, the later one counts: its job went back to a checkpoint.
    """
    segments = [records for file in files if (records := list(_read_records(file.read_bytes())))]
    kept: list[Any] = []
    end = inf  # The first step that a later segment has.
    for records in reversed(segments):
        left_out = [] if records is segments[0] else ["header", "run"]
        left_out += [] if records is segments[-1] else ["exit"]
        kept[:0] = [record for record in records if _is_kept(record, end, left_out)]
        end = min([end, *(_step(record) for record in records if record.HasField("history"))])
    return Merged(kept, has_ended=any(record.HasField("exit") for record in kept))


def _is_kept(record: Any, end: float, left_out: Sequence[str]) -> bool:
    if record.HasField("history"):
        return _step(record) < end
    return record.WhichOneof("record_type") not in left_out


def _step(record: Any) -> int:
    return record.history.step.num


def _read_records(content: bytes) -> Iterator[Any]:
    """Yield the records that are whole: a job that runs, or was killed, leaves half of one at the end."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    position, parts = _START_BYTES, []
    while position + _HEADER.size <= len(content):
        left = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left < _HEADER.size:
            position += left
            continue
        checksum, length, kind = _HEADER.unpack_from(content, position)
        data = content[position + _HEADER.size : position + _HEADER.size + length]
        if len(data) < length or zlib.crc32(bytes([kind]) + data) != checksum:
            return
        position += _HEADER.size + length
        parts = [data] if kind in (_FULL, _FIRST) else [*parts, data]
        if kind in (_FULL, _LAST):
            yield Record.FromString(b"".join(parts))


def _write_records(records: Iterable[bytes]) -> bytes:
    """Return records in chunks, as they follow the start of a file."""
    content = bytearray(_START_BYTES)  # Blocks count from the start of the file.
    for record in records:
        rest, is_first = record, True
        while is_first or rest:
            room = _BLOCK_BYTES - len(content) % _BLOCK_BYTES - _HEADER.size
            if room < 0:
                content += bytes(room + _HEADER.size)
                continue
            data, rest = rest[:room], rest[room:]
            kind = (_FIRST if rest else _FULL) if is_first else (_MIDDLE if rest else _LAST)
            content += _HEADER.pack(zlib.crc32(bytes([kind]) + data), len(data), kind) + data
            is_first = False
    return bytes(content[_START_BYTES:])


def _write(target: Path, merged: Merged, files: Sequence[Path], sent: dict[str, int]) -> None:
    """Write what is not sent yet of a run, beside the files that its latest job wrote for W&B."""
    shutil.rmtree(target.parent, ignore_errors=True)
    target.parent.mkdir(parents=True)
    (target.parent / "files").symlink_to((files[-1].parent / "files").resolve())
    stats = itertools.count()
    new = [record for record in merged.records if _is_new(record, sent, stats)]
    for number, record in enumerate(new, start=1):
        record.num = number
    start = files[0].read_bytes()[:_START_BYTES]
    target.write_bytes(start + _write_records(record.SerializeToString() for record in new))


def _is_new(record: Any, sent: dict[str, int], stats: Iterator[int]) -> bool:
    if record.HasField("stats"):  # Measurements of the machine have no step.
        return next(stats) >= sent.get("stats", 0)
    return not record.HasField("history") or _step(record) > sent.get("step", -1)


def _sent_file(target: Path) -> Path:
    """Return the file that says how far a run was sent."""
    return target.parent.with_suffix(".json")
