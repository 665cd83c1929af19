"""The folder of one private Slurm: every path in it, its configuration, and the right to write to or remove it."""

import fcntl
import json
import os
import pwd
import random
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template

NODES = ("dg1", "dg2", "bd1")
GPUS_PER_NODE = 4
DEFAULT_MAX_ARRAY_SIZE = 1001  # Slurm's own default
LARGEST_MAX_ARRAY_SIZE = 4_000_001  # Slurm's own limit

NO_ACCOUNTING = """AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none"""
ACCOUNTING = """AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$port_slurmdbd
AccountingStoragePass=$state/munge.socket
AccountingStorageEnforce=limits
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1"""

# Other characters would need quoting that slurm.conf does not have (a blank, `#`, `,`, `=`) or be replaced (`%n`).
# slurmd's sockets, up to 33 characters longer than this path, must fit into the 107 of a Unix socket.
PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+@-]{2,74}")


class UsageError(Exception):
    """The caller asked for something that cannot be: exit code 2."""


class ClusterError(Exception):
    """The cluster did not do what it should: exit code 1."""


class State:
    """The folder; `up` makes it, `down` removes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().resolve()
        self.conf = self.folder / "slurm.conf"
        self.settings = self.folder / "dev-cluster.json"  # also the mark that the folder is ours to remove
        self.socket = self.folder / "munge.socket"
        self.key = self.folder / "munge.key"

    @property
    def exists(self) -> bool:
        """Whether `up` was here and `down` was not."""
        return self.settings.is_file() and self.conf.is_file()

    def log(self, daemon: str) -> Path:
        """Return the file the daemon's messages go to."""
        return self.folder / "log" / f"{daemon}.log"

    def record(self, daemon: str) -> Path:
        """Return the file that says which process the daemon is."""
        return self.folder / "pids" / daemon

    def home(self, daemon: str) -> Path:
        """Return the folder the daemon works in, by which we know its helper processes."""
        return self.folder / "spool" / daemon

    @property
    def max_array_size(self) -> int:
        """As given at `up`."""
        return json.loads(self.settings.read_text())["max_array_size"]

    @property
    def accounting(self) -> bool:
        """Whether `up` was asked for a database of jobs."""
        text = self.settings.read_text() if self.settings.is_file() else ""
        return json.loads(text)["accounting"] if text else False

    @property
    def ports(self) -> dict[str, int]:
        """Where the daemons listen."""
        return json.loads(self.settings.read_text())["ports"]

    def claim(self) -> None:
        """Make the folder, or recognise it as ours; never write into anything else."""
        if not PLAIN_PATH.fullmatch(str(self.folder)):
            message = (
                f"Slurm cannot work in {str(self.folder)!r}: choose a --state path of at most 74 characters, "
                "only letters, digits and any of / . _ + @ - (no blanks)"
            )
            raise UsageError(message)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            empty = not any(self.folder.iterdir())
        except OSError as error:
            message = f"cannot use {self.folder}: {error.strerror}; choose another --state"
            raise UsageError(message) from error
        if empty and self.folder.stat().st_uid == os.getuid():
            self.settings.touch()
        self.check_ours()

    def check_ours(self) -> None:
        """Refuse a folder that `up` did not make, or that another user may have prepared."""
        if not self.settings.is_file() or self.settings.stat().st_uid != os.getuid():
            message = f"{self.folder} is not a dev cluster of this user: choose another --state"
            raise UsageError(message)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other calls on the same folder waiting; they must not start the same daemon twice."""
        try:
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            message = f"no dev cluster in {self.folder}: run `up` first"
            raise ClusterError(message) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not self.settings.exists():
                message = f"{self.folder} was taken down meanwhile"
                raise ClusterError(message)
            yield
        finally:
            os.close(descriptor)

    def configure(self, max_array_size: int, accounting: bool = False) -> None:
        """Write everything the daemons read. slurm.conf comes last: where it is, all the rest is, too."""
        for name in ("spool", "log", "pids", "gpus"):
            (self.folder / name).mkdir(exist_ok=True)
        for number in range(GPUS_PER_NODE):
            link = self.folder / "gpus" / f"gpu{number}"
            link.unlink(missing_ok=True)
            link.symlink_to("/dev/null")
        self.key.touch(mode=0o600)
        self.key.write_bytes(os.urandom(128))
        ports = free_ports(["slurmctld", "slurmdbd", "mariadbd", *NODES])
        settings = {"max_array_size": max_array_size, "accounting": accounting, "ports": ports}
        self.settings.write_text(json.dumps(settings))
        values = self._template_values(max_array_size, ports)
        values["accounting"] = Template(ACCOUNTING if accounting else NO_ACCOUNTING).substitute(values)
        for name in ("database.sql", "slurmdbd.conf", "gres.conf", "slurm.conf"):
            template = Path(__file__).with_name(f"{name}.template").read_text()
            (self.folder / name).touch(mode=0o600)  # slurmdbd insists: there is a password in it.
            (self.folder / name).write_text(Template(template).substitute(values))

    def _template_values(self, max_array_size: int, ports: dict[str, int]) -> dict[str, object]:
        return {
            "password": os.urandom(16).hex(),
            "state": self.folder,
            "user": user_name(),
            "host": socket.gethostname().partition(".")[0],  # the short name, as the daemons compare it
            "max_array_size": max_array_size,
            "max_job_count": max(10_000, max_array_size),
            **{f"port_{name}": port for name, port in ports.items()},
        }

    def remove(self) -> None:
        """Remove the folder and all in it."""
        shutil.rmtree(self.folder)


def user_name() -> str:
    """Return the name of the user."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        message = f"user {os.getuid()} has no name on this machine (no line in /etc/passwd), which Slurm needs"
        raise UsageError(message) from None


def default_folder() -> Path:
    """Return $ANML_DEV_CLUSTER, or a folder of this user in the system's temporary folder."""
    return Path(os.environ.get("ANML_DEV_CLUSTER") or f"{tempfile.gettempdir()}/anml-dev-cluster-{os.getuid()}")


def free_ports(names: list[str]) -> dict[str, int]:
    """Find a free port for each name, below the range that outgoing connections get theirs from.

    A port that slurmctld leaves for a while (it may be stopped and started) must not be taken by a passing connection.
    """
    sockets: dict[str, socket.socket] = {}
    candidates = iter(random.sample(range(20_000, 32_000), 1000))
    while len(sockets) < len(names):
        candidate = socket.socket()
        try:
            candidate.bind(("127.0.0.1", next(candidates)))
        except OSError:
            candidate.close()
        else:
            sockets[names[len(sockets)]] = candidate
    ports = {name: held.getsockname()[1] for name, held in sockets.items()}
    for held in sockets.values():
        held.close()
    return ports
