"""A Grid Engine of one machine: a cell in a folder of its own, with real daemons on the loopback interface."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Where Debian's packages gridengine-master, -exec and -client put them.
PROGRAMS = Path("/usr/lib/gridengine")
TEMPLATES = Path("/usr/share/gridengine")
SLOTS = 2

_BOOTSTRAP = """\
admin_user none
default_domain none
ignore_fqdn true
spooling_method classic
spooling_lib libspoolc
spooling_params {root}/default/common;{root}/spool/qmaster
binary_path /usr/lib/gridengine
qmaster_spool_dir {root}/spool/qmaster
security_mode none
listener_threads 2
worker_threads 2
scheduler_threads 1
jvm_threads 0
"""
# Jobs of any user; accounts written at once; a job that is requeued starts on this host again after a few seconds.
_CHANGES = {
    "execd_spool_dir": "{root}/spool/execd", "min_uid": "0", "min_gid": "0", "load_report_time": "00:00:02",
    "reporting_params": "accounting=true reporting=false flush_time=00:00:01 accounting_flush_time=00:00:00 "
    "joblog=false sharelog=00:00:00",
}  # fmt: skip
_SCHEDULER = {
    "schedule_interval": "0:0:1", "flush_submit_sec": "1", "flush_finish_sec": "1",
    "job_load_adjustments": "NONE", "load_adjustment_decay_time": "0:0:0",
}  # fmt: skip
_LIMITS = [f"{kind}_{what}" for what in ("rt", "cpu", "fsize", "data", "stack", "core", "rss", "vmem") for kind in "sh"]
_QUEUE = {
    "qname": "all.q", "hostlist": "localhost", "seq_no": "0", "load_thresholds": "NONE", "suspend_thresholds": "NONE",
    "nsuspend": "1", "suspend_interval": "00:05:00", "priority": "0", "min_cpu_interval": "00:05:00",
    "processors": "UNDEFINED", "qtype": "BATCH INTERACTIVE", "ckpt_list": "NONE", "pe_list": "NONE", "rerun": "FALSE",
    "slots": str(SLOTS), "tmpdir": "/tmp", "shell": "/bin/sh", "prolog": "NONE", "epilog": "NONE",
    "shell_start_mode": "posix_compliant", "starter_method": "NONE", "suspend_method": "NONE",
    "resume_method": "NONE", "terminate_method": "NONE", "notify": "00:00:30", "owner_list": "NONE",
    "user_lists": "NONE", "xuser_lists": "NONE", "subordinate_list": "NONE", "complex_values": "NONE",
    "projects": "NONE", "xprojects": "NONE", "calendar": "NONE", "initial_state": "default",
    **dict.fromkeys(_LIMITS, "INFINITY"),
}  # fmt: skip


class Cell:
    """A cell that is set up; `env` is what its commands need."""

    def __init__(self, root: Path) -> None:
        self.root = root
        ports = {name: str(_free_port()) for name in ("SGE_QMASTER_PORT", "SGE_EXECD_PORT")}
        settings = {"SGE_ROOT": str(root), "SGE_CELL": "default", "SGE_ARCH": "lx-amd64", "SGE_ND": "1"}
        self.env = os.environ | settings | ports
        self.daemons: list[subprocess.Popen] = []
        for folder in ("bin", "lib", "utilbin"):
            (root / folder).mkdir(parents=True)
            (root / folder / "lx-amd64").symlink_to(PROGRAMS)
        (root / "util").symlink_to(TEMPLATES / "util")
        common = root / "default" / "common"
        for folder in (common, root / "spool" / "qmaster" / "job_scripts", root / "spool" / "execd"):
            folder.mkdir(parents=True)
        (common / "act_qmaster").write_text("localhost\n")
        (common / "host_aliases").write_text(f"localhost {socket.gethostname()}\n")
        (common / "bootstrap").write_text(_BOOTSTRAP.format(root=root))
        spool = f"{common};{root}/spool/qmaster"
        self.call(PROGRAMS / "spoolinit", "classic", "libspoolc", spool, "init")
        defaults = (TEMPLATES / "default-configuration").read_text()
        self.call(PROGRAMS / "spooldefaults", "configuration", self._write("configuration", _changed(defaults, root)))
        for kind, source in (("complexes", "centry"), ("usersets", "usersets")):
            self.call(PROGRAMS / "spooldefaults", kind, TEMPLATES / "util" / "resources" / source)
        self.call(PROGRAMS / "spooldefaults", "managers", os.environ.get("USER", "root"))

    def start(self) -> None:
        """Start the daemons and make a queue."""
        self._daemon("sge_qmaster")
        self._until_done("qconf", "-ah", "localhost")
        self._until_done("qconf", "-as", "localhost")
        self._daemon("sge_execd")
        self._until_done("qconf", "-se", "localhost")
        scheduler = self.call("qconf", "-ssconf")
        for key, value in _SCHEDULER.items():
            scheduler = "\n".join(
                f"{key} {value}" if line.startswith(f"{key} ") else line for line in scheduler.split("\n")
            )
        self.call("qconf", "-Msconf", self._write("scheduler", scheduler))
        self.call("qconf", "-Aq", self._write("queue", "".join(f"{key} {value}\n" for key, value in _QUEUE.items())))

    def stop(self) -> None:
        """End all jobs, then the daemons."""
        subprocess.run(["qdel", "-f", "-u", "*"], env=self.env, capture_output=True, check=False)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(5)
            daemon.kill()
            daemon.wait()

    def call(self, *command: str | Path) -> str:
        """Run a command of Grid Engine that must succeed."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
        return done.stdout

    def _daemon(self, name: str) -> None:
        with (self.root / f"{name}.log").open("w") as log:
            self.daemons.append(subprocess.Popen([PROGRAMS / name], env=self.env, stdout=log, stderr=log))

    def _until_done(self, *command: str) -> None:
        deadline = time.monotonic() + 60
        while True:
            done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)
            if done.returncode == 0 or "already exists" in done.stderr:
                return
            assert time.monotonic() < deadline, f"{command}: {done.stdout} {done.stderr}"
            time.sleep(0.5)

    def _write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.write_text(text)
        return path


def _changed(configuration: str, root: Path) -> str:
    lines = []
    for line in configuration.splitlines():
        key = line.split(" ", 1)[0]
        lines.append(f"{key} {_CHANGES[key].format(root=root)}" if key in _CHANGES else line.replace("\t", " "))
    return "\n".join(lines) + "\n"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def private_cell(folder: Path) -> Iterator[Cell]:
    """Set a cell up, start it, and take it down again."""
    cell = Cell(folder)
    try:
        cell.start()
        yield cell
    finally:
        cell.stop()


def absent() -> list[str]:
    """Return what is missing here for a cell."""
    return [name for name in ("sge_qmaster", "sge_execd", "qsub") if not (PROGRAMS / name).exists()] + (
        [] if shutil.which("qsub") else ["qsub in PATH"]
    )
