"""The daemons of a private Slurm (munged, slurmctld, one slurmd a node) and the processes of its jobs."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from datetime import datetime

import processes
from processes import Process
from state import DEFAULT_MAX_ARRAY_SIZE, NODES, ClusterError, State, UsageError, user_name

PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmstepd", "sbatch", "squeue", "scontrol")
OF_ACCOUNTING = ("mariadbd", "slurmdbd")
PACKAGES = "slurm-wlm and munge (for accounting: slurmdbd and mariadb-server)"
START_SECONDS = 30.0
USABLE_STATES = re.compile(r"IDLE|MIXED|ALLOCATED|(IDLE|MIXED|ALLOCATED)\+COMPLETING|COMPLETING")
OUTER_SLURM = re.compile(r"(SLURM|SLURMD|SLURMCTLD|SBATCH|SALLOC|SRUN|SQUEUE|SINFO|SCANCEL)_")


class Cluster:
    """One cluster, in one state folder."""

    def __init__(self, state: State) -> None:
        self.state = state
        # For daemons and clients: daemons live in sbin, which an ordinary user's PATH may lack; nothing of a Slurm
        # around us may reach them.
        kept = {name: value for name, value in os.environ.items() if not OUTER_SLURM.match(name)}
        path = f"{kept.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
        self.environment = {**kept, "PATH": path, "SLURM_CONF": str(state.conf)}

    @property
    def daemons(self) -> tuple[str, ...]:
        """Return the daemons of this cluster, in the order of their start."""
        return ("munged", *(OF_ACCOUNTING if self.state.accounting else ()), "slurmctld", *NODES)

    def daemon(self, name: str) -> Process | None:
        """Return the daemon's process, None if it does not run."""
        record = self._record(name)
        return record[0] if record and record[0].alive else None

    def missing(self) -> list[str]:
        """Name the daemons that do not run."""
        return [name for name in self.daemons if not self.daemon(name)]

    def up(self, max_array_size: int | None, accounting: bool = False) -> bool:
        """Start what does not run and wait until every node is usable. False if there was nothing to do."""
        self._check_installed((*PROGRAMS, *OF_ACCOUNTING) if accounting else PROGRAMS)
        self.state.claim()
        with self.state.locked():
            if not self.state.exists:
                self.state.configure(max_array_size or DEFAULT_MAX_ARRAY_SIZE, accounting)
            current = self.state.max_array_size
            if max_array_size not in (None, current):
                message = f"the cluster in {self.state.folder} has --max-array-size {current}; `down` comes first"
                raise UsageError(message)
            if missing := self.missing():
                self._start_all(missing)
            return bool(missing)

    def down(self) -> bool:
        """Kill daemons and jobs, remove the folder. False if there was nothing."""
        if not self.state.folder.exists():
            return False
        self.state.check_ours()
        with self.state.locked():
            self._kill_all()
            self.state.remove()
        return True

    def start(self, name: str, keep_jobs: bool = False) -> bool:
        """Start one daemon and wait until it serves. False if it already runs. keep_jobs: those of a node run on."""
        with self.state.locked():
            if self.daemon(name):
                return False
            if name in NODES and not keep_jobs:
                self._declare_down(name)
            self._spawn(name)
        # Without the lock: a node may have to wait for a slurmctld that another call is about to start.
        if name not in NODES or self.daemon("slurmctld"):
            self._wait(lambda: self._serves(name), [name])
        return True

    def stop_controller(self) -> bool:
        """Stop slurmctld in an orderly way, so that its state is on disk. False if it does not run."""
        with self.state.locked():
            process = self.daemon("slurmctld")
            if not process:
                return False
            process.kill(signal.SIGTERM)
            if not processes.wait_gone([process], START_SECONDS):
                message = f"slurmctld did not stop:\n{self._log_tails(['slurmctld'])}"
                raise ClusterError(message)
            return True

    def stop_node(self, node: str) -> bool:
        """Kill a node's slurmd and all its job processes at once, as a power cut would. False if nothing runs."""
        with self.state.locked():
            return self._kill_all(node)

    def node_states(self) -> dict[str, str]:
        """Return the state of every node; empty while slurmctld does not answer."""
        return {node: fields["State"] for node, fields in self._nodes().items()}

    # Starting

    def _check_installed(self, programs: tuple[str, ...]) -> None:
        path = self.environment["PATH"]
        # slurmstepd is where slurmd was built to expect it, which may be outside PATH: slurmd reports its absence.
        absent = [name for name in programs if not shutil.which(name, path=path)]
        if absent:
            message = f"{', '.join(absent)} not found: install the Debian packages {PACKAGES}"
            raise UsageError(message)

    def _start_all(self, names: list[str]) -> None:
        try:
            for name in names:
                self._spawn(name)
                # Without munged the others give up at once; a slurmd that finds no slurmctld pauses for a second.
                if name not in NODES:
                    self._wait(lambda name=name: self._serves(name), [name])
            self._wait(self._all_usable, list(self.daemons))
        except BaseException:  # an interrupt, too: what did not come up must not stay
            for name in names:
                self._kill_all(name)
            raise

    def _declare_down(self, node: str) -> None:
        # A rebooted node tells by its boot time that its jobs are lost. Ours does not reboot, and Slurm would think for
        # 20 s that a missing job is only slow to start: say it instead. The node is back in service as it registers.
        if self.node_states().get(node):
            self._run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=stop-node")

    def _spawn(self, name: str) -> None:
        home = self.state.home(name)
        home.mkdir(parents=True, exist_ok=True)
        if name == "mariadbd" and not any(home.iterdir()):
            self._install_database()
        if name == "slurmctld" and self.state.accounting:
            # Else the controller would wait for its cluster to be known to the database.
            self._run("sacctmgr", "--immediate", "add", "cluster", "anml-dev")
            self._run("sacctmgr", "--immediate", "add", "account", "anml", "cluster=anml-dev")
            self._run("sacctmgr", "--immediate", "add", "user", user_name(), "account=anml", "cluster=anml-dev")
        command, since = self._command(name), time.time()
        with self.state.log(name).open("ab") as log:
            child = subprocess.Popen(
                command,
                cwd=home,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if process := processes.lookup(child.pid):
            self.state.record(name).write_text(f"{process.pid} {process.started} {since:.3f}\n")

    def _install_database(self) -> None:
        options = ["--no-defaults", "--user=root", "--skip-test-db", *self._database_folders()]
        done = subprocess.run(["mariadb-install-db", *options], env=self.environment, capture_output=True, text=True)
        if done.returncode:
            message = f"mariadb-install-db failed:\n{done.stdout}{done.stderr}"
            raise ClusterError(message)

    def _database_folders(self) -> list[str]:
        # A MariaDB that starts deletes the temporary tables of all others that share its folder for temporary files.
        return [f"--datadir={self.state.home('mariadbd')}", f"--tmpdir={self.state.folder}"]

    def _command(self, name: str) -> list[str]:
        if name in ("slurmctld", "slurmdbd"):
            return [name, "-D"]
        if name == "mariadbd":
            network = ["--bind-address=127.0.0.1", f"--port={self.state.ports[name]}"]
            first = f"--init-file={self.state.folder / 'database.sql'}"
            return [
                "mariadbd",
                "--no-defaults",
                "--user=root",
                first,
                f"--socket={self.state.folder / 'mariadb.socket'}",
                *self._database_folders(),
                *network,
                "--innodb-flush-log-at-trx-commit=0",
            ]
        if name in NODES:
            return ["slurmd", "-D", "-N", name]
        # --force: munged otherwise refuses folders that others may write to or that not everybody may enter, as a
        # system's munged should; this one serves a single user.
        files = [f"--{kind}-file={self.state.folder / 'munged'}.{kind}" for kind in ("pid", "seed")]
        return ["munged", "-F", "--force", f"--socket={self.state.socket}", f"--key-file={self.state.key}", *files]

    def _record(self, name: str) -> tuple[Process, float] | None:
        try:
            pid, started, since = self.state.record(name).read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return Process(int(pid), int(started)), float(since)

    # Waiting

    def _wait(self, ready: Callable[[], bool], names: list[str]) -> None:
        end = time.monotonic() + START_SECONDS
        while not ready():
            dead = [name for name in names if not self.daemon(name)]
            if dead or time.monotonic() > end:
                reason = "died" if dead else f"did not serve within {START_SECONDS:.0f} s"
                message = f"{', '.join(dead or names)} {reason}\n{self._log_tails(dead or names)}"
                raise ClusterError(message)
            time.sleep(0.05)

    def _serves(self, name: str) -> bool:
        if name == "munged":
            return _listens(socket.AF_UNIX, str(self.state.socket))
        if name in OF_ACCOUNTING:
            return _listens(socket.AF_INET, ("127.0.0.1", self.state.ports[name]))
        if name == "slurmctld":
            return bool(self._nodes())
        return self._usable(name, self._nodes())

    def _all_usable(self) -> bool:
        nodes = self._nodes()
        return all(self._usable(node, nodes) for node in NODES)

    def _usable(self, node: str, nodes: dict[str, dict[str, str]]) -> bool:
        """Tell if the slurmd that runs now has registered; a state alone may be what slurmctld recalls of another."""
        fields, record = nodes.get(node, {}), self._record(node)
        try:
            registered = datetime.fromisoformat(fields.get("SlurmdStartTime", "")).timestamp()
        except ValueError:  # "None" until it registers
            return False
        return bool(record and registered >= int(record[1]) and USABLE_STATES.fullmatch(fields["State"]))

    def _nodes(self) -> dict[str, dict[str, str]]:
        # Without slurmctld scontrol would try for some 9 seconds.
        if not _listens(socket.AF_INET, ("127.0.0.1", self.state.ports["slurmctld"])):
            return {}
        lines = self._run("scontrol", "show", "node", "--oneliner").splitlines()
        rows = (dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines)
        return {row["NodeName"]: row for row in rows if "NodeName" in row}

    def _run(self, *command: str, patience: float = 5) -> str:
        try:
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=patience)
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout

    def _log_tails(self, names: list[str]) -> str:
        parts = []
        for log in map(self.state.log, names):
            tail = log.read_text(errors="replace").splitlines()[-12:] if log.exists() else ["(no log)"]
            parts.append("\n".join([f"--- {log}", *tail]))
        return "\n".join(parts)

    # Killing

    def _kill_all(self, name: str | None = None) -> bool:
        found = False
        for _ in range(20):  # again: a process may start another one between our look and the signal
            targets = self._everything(name)
            if not targets:
                return found
            found = True
            for process in targets:
                process.kill()
            processes.wait_gone(targets, 2)
        message = f"these processes do not die: {sorted(process.pid for process in self._everything(name))}"
        raise ClusterError(message)

    def _everything(self, name: str | None) -> set[Process]:
        """Daemons, their helpers and all processes of jobs; of one daemon (a node) or of the whole cluster."""
        entries = processes.living()
        daemons = map(self.daemon, [name] if name else self.daemons)
        roots = {process for process in daemons if process}
        # slurmstepd and slurmscriptd inherit the folder a daemon works in, a job's own processes do not.
        home = self.state.home(name) if name else self.state.folder
        helpers = (entry.process for entry in entries if entry.command.startswith("slurm"))
        roots |= {process for process in helpers if processes.works_in(process, home)}
        # What a job leaves behind when its slurmstepd is killed has lost its parent, but not Slurm's variables.
        # (All of them: a shell that merely uses this cluster has SLURM_CONF, and may itself be a job of another one.)
        marks = [f"SLURM_CONF={self.state.conf}", "SLURM_CLUSTER_NAME=anml-dev", f"SLURMD_NODENAME={name or ''}"]
        roots |= {entry.process for entry in entries if processes.was_given(entry.process, marks)}
        return processes.family(roots, entries)


def _listens(family: socket.AddressFamily, address: str | tuple[str, int]) -> bool:
    with socket.socket(family) as client:
        try:
            client.connect(address)
        except OSError:
            return False
    return True
