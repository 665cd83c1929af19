"""A cluster behind the user's own `ssh`: files travel by rsync, commands of this package run on its login node.

ssh asks nothing (BatchMode): keys, agents and jump hosts are the user's, in `~/.ssh/config`. All that a command of ours
does there goes through one connection; where the user's settings keep one open (ControlPath), through that.
"""

import base64
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from anml.config.profile import ClusterProfile
from anml.errors import SubmissionError
from anml.jobs.interrupts import ended_as_by_ctrl_c
from anml.jobs.schedulers import setup_lines

# A connection that does not answer for three times this many seconds is lost.
_ALIVE_SECONDS = 15
# What ssh exits with when it fails itself.
_LOST = 255

# When nobody listens any more (Ctrl-C, a lost connection), standard input ends: the command is ended as by Ctrl-C, and
# what it still prints goes nowhere instead of breaking it amid a submission.
_RUN = """\
exec 3<&0
{command} 3<&- </dev/null > >(cat; cat >/dev/null) 2> >(cat >&2; cat >/dev/null) &
anml_child=$!
{{ cat <&3; kill -TERM $anml_child; }} >/dev/null 2>&1 &
anml_watch=$!
wait $anml_child
anml_code=$?
kill $anml_watch 2>/dev/null
exit $anml_code
"""


class Login:
    """An open connection to the login node of a profile. Paths there are below the home directory, or absolute."""

    def __init__(self, profile: ClusterProfile, socket: Path | None) -> None:
        assert profile.ssh is not None
        self.profile, self.host = profile, profile.ssh
        self.folder = profile.ssh_folder.removeprefix("~/")
        control = ["-o", f"ControlPath={socket}"] if socket else []
        alive = ["-o", f"ServerAliveInterval={_ALIVE_SECONDS}", "-o", "ServerAliveCountMax=3"]
        self.ssh = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_ALIVE_SECONDS}", *alive, *control]

    @property
    def python(self) -> str:
        """The python of the login node, after the setup lines; that of a container is for jobs."""
        return "python3" if self.profile.container else self.profile.python or "python3"

    def prepare(self, folder: str) -> None:
        """Make a folder there; see that it can be written to, and that python starts. Raises SubmissionError."""
        quoted = shlex.quote(folder)
        probe = "import sys, pydantic; sys.exit(sys.version_info < (3, 11) and 'Python ' + sys.version)"
        script = [f"mkdir -p {quoted} && test -w {quoted} || exit", *setup_lines(self.profile)]
        script += [shlex.join([self.python, "-c", probe])]
        what = f"{folder} or {self.python} there cannot be used (profile: ssh_folder, setup, python)"
        self._call([*self.ssh, self.host, _in_bash(script)], what)

    def send(self, source: Path, target: str) -> None:
        """Copy what a folder of this machine holds into one there. Raises SubmissionError."""
        self._rsync(f"{source}/", f"{self.host}:{target}/")

    def fetch(self, source: str, target: Path, without: Sequence[str] = ()) -> None:
        """Copy a folder there, but for patterns of rsync, into one of this machine. Raises SubmissionError."""
        target.mkdir(parents=True, exist_ok=True)
        self._rsync(*(f"--exclude={pattern}" for pattern in without), f"{self.host}:{source}/", f"{target}/")

    def run(self, folder: str, words: Sequence[str], at_the_end: str = "", on_terminal: bool = False) -> int:
        """Run python with some words in a folder there, after the setup lines; return its exit code.

        What it prints is printed here. Ctrl-C ends it as there, and its last words are still shown. folder: below
        `ssh_folder`. at_the_end: a shell line, run in the home directory whatever became of the command. on_terminal:
        the command has this terminal. Raises SubmissionError when the connection is lost.
        """
        command = shlex.join([self.python, *words])
        lines = [
            *([f"trap {shlex.quote(f'cd && {at_the_end}')} EXIT"] if at_the_end else []),
            f"cd {shlex.quote(self.folder)} || exit",
            f'export ANML_EXPERIMENTS="$PWD/experiments" COLUMNS={shutil.get_terminal_size().columns}',
            *setup_lines(self.profile),
            f"cd {shlex.quote(folder)} || exit",
            command if on_terminal else _RUN.format(command=command),
        ]
        code = self._wait(_in_bash(lines), on_terminal)
        if code == _LOST:
            message = f"the connection to {self.host} was lost"
            raise SubmissionError(message)
        return code

    def _wait(self, command: str, on_terminal: bool) -> int:
        if on_terminal:
            return subprocess.run([*self.ssh, "-t", self.host, command], check=False).returncode
        # In a session of its own, where Ctrl-C does not reach it.
        process = subprocess.Popen([*self.ssh, self.host, command], stdin=subprocess.PIPE, start_new_session=True)
        with ended_as_by_ctrl_c():
            try:
                return process.wait()
            except KeyboardInterrupt:
                assert process.stdin is not None
                process.stdin.close()
                process.wait()
                raise

    def _rsync(self, *words: str) -> None:
        """Run rsync. -s: names with blanks are safe with versions of any age."""
        command = ["rsync", "-rlptz", "-s", f"--timeout={4 * _ALIVE_SECONDS}", "-e", shlex.join(self.ssh), *words]
        self._call(command, "rsync failed (it must be installed on both machines)")

    def _call(self, command: Sequence[str], what: str) -> None:
        try:
            result = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", check=False
            )
        except FileNotFoundError:
            message = f"there is no {command[0]} on this machine: install it (the profile {self.profile.name} has ssh)"
            raise SubmissionError(message) from None
        if result.returncode != 0:
            words = " ".join(result.stderr.splitlines()[-2:]) or f"exit code {result.returncode}"
            message = f"{self.host}: {what}: {words}"
            raise SubmissionError(message)


def _in_bash(lines: Sequence[str]) -> str:
    """Return what any shell of the user's runs as lines of bash; a login shell knows the scheduler and `module`."""
    encoded = base64.b64encode("\n".join(lines).encode()).decode()
    return f"""exec bash -lc 'eval "$(echo {encoded} | base64 -d)"'"""


@contextmanager
def logged_in(profile: ClusterProfile) -> Iterator[Login]:
    """Keep one connection open for what is done in the block. Raises SubmissionError where none can be made."""
    with tempfile.TemporaryDirectory(prefix="anml-ssh-") as folder:
        socket = None if _keeps_connections(str(profile.ssh)) else Path(folder) / "socket"
        login = Login(profile, socket)
        # In the background; it ends a minute after the last use, should this process be killed.
        master = ["-M", "-N", "-f", "-o", "ControlPersist=60"] if socket else ["-n"]
        with tempfile.TemporaryFile() as words:  # No pipe: the connection would keep it open.
            done = subprocess.run(
                [*login.ssh, *master, login.host, *([] if socket else ["true"])],
                stdin=subprocess.DEVNULL, stdout=words, stderr=words, check=False,
            )  # fmt: skip
            words.seek(0)
            said = " ".join(words.read().decode(errors="replace").split())
        if done.returncode != 0:
            message = (
                f"cannot log in to {login.host} (profile {profile.name}): {said}. `ssh {login.host}` must work without "
                "a question: a key without a passphrase, an agent, or a connection that you keep open (ControlMaster)"
            )
            raise SubmissionError(message)
        try:
            yield login
        finally:
            if socket:
                subprocess.run([*login.ssh, "-O", "exit", login.host], capture_output=True, check=False)


def _keeps_connections(host: str) -> bool:
    """Say whether the user's settings of ssh name a ControlPath for a host. Raises SubmissionError without ssh."""
    try:
        settings = subprocess.run(["ssh", "-G", host], capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        message = "there is no ssh on this machine: install it (OpenSSH)"
        raise SubmissionError(message) from None
    return re.search(r"^controlpath (?!none)", settings, re.MULTILINE) is not None
