"""A login node: a real sshd on the loopback interface, with keys of its own, whose users find the dev cluster there."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SSHD = "/usr/sbin/sshd"
HOST = "lab"

_SSHD_CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
{more}
"""

_SSH_CONFIG = """
Host {host}
    HostName 127.0.0.1
    Port {port}
    User {user}
    IdentityFile {folder}/user_key
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
"""


class LoginNode:
    """A running sshd. more: settings. bin: a folder for PATH whose `ssh` reads the settings of this node's user."""

    def __init__(self, folder: Path, more: str = "") -> None:
        self.folder, self.bin = folder, folder / "bin"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        values = {"folder": folder, "port": self.port, "host": HOST, "user": getpass.getuser(), "more": more}
        self.bin.mkdir(parents=True)
        for key in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        host_key = (folder / "host_key.pub").read_text()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key}")
        (folder / "sshd_config").write_text(_SSHD_CONFIG.format(**values))
        (folder / "ssh_config").write_text(_SSH_CONFIG.format(**values))
        self.put("ssh", f'exec {shutil.which("ssh")} -F {folder}/ssh_config "$@"')

    def put(self, name: str, line: str) -> None:
        """Write a command that comes first in PATH."""
        (self.bin / name).write_text(f"#!/bin/sh\n{line}\n")
        (self.bin / name).chmod(0o755)

    def start(self) -> None:
        """Start sshd and wait until it answers."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # Where sshd, started by root, locks itself up.
        command = [SSHD, "-D", "-f", self.folder / "sshd_config", "-E", self.folder / "sshd.log"]
        self.process = subprocess.Popen(command)
        deadline = time.monotonic() + 10
        while not self._answers():
            assert time.monotonic() < deadline, (self.folder / "sshd.log").read_text()
            time.sleep(0.05)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """End sshd; connections that are open stay."""
        self.process.terminate()
        self.process.wait()

    def cut(self) -> None:
        """Cut all connections, as a network that fails does; what runs through them is not ended."""
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True)
        for pid in listed.stdout.split():
            os.kill(int(pid), signal.SIGKILL)


@contextmanager
def login_node(folder: Path, more: str = "") -> Iterator[LoginNode]:
    """Start a login node and stop it again."""
    node = LoginNode(folder, more)
    node.start()
    try:
        yield node
    finally:
        node.stop()
