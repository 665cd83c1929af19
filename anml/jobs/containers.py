"""The shell lines that start a job's python: in place of the shell, or in the container of a profile."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from anml.config.profile import ClusterProfile

# A job in a container, where Slurm's commands are missing, makes this file to be requeued by the script around it. In
# it is what `scontrol update` is then to change.
REQUEUE_VARIABLE = "ANML_REQUEUE_FILE"
_GPU_FLAGS = {"cuda": ["--nv"], "rocm": ["--rocm"]}

# bash runs a trap only while it waits for a child in the background; `wait` ends early when it does.
WAIT_FOR_CHILD = """\
wait $anml_child
anml_code=$?
while kill -0 $anml_child 2>/dev/null; do
    wait $anml_child
    anml_code=$?
done"""
_RUN = (
    """\
{command} &
anml_child=$!
trap 'kill -USR1 $anml_child' USR1
trap 'kill -TERM $anml_child' TERM
"""
    + WAIT_FOR_CHILD
)
_MARK_FOR_REQUEUE = """\
export {variable}={folder}/.requeue-"${{SLURM_JOB_ID:-$$}}"
rm -f "${variable}\""""
_REQUEUE_IF_MARKED = """\
if [ -e "${variable}" ]; then
    trap '' TERM
    anml_more="$(cat "${variable}")"
    rm -f "${variable}"
    anml_id="${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_}}${{SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}}"
    scontrol requeue "$anml_id"
    [ -z "$anml_more" ] || scontrol update "JobId=$anml_id" $anml_more
fi
exit $anml_code"""
# The kernel kills what needs too much memory, and leaves the shell. A requeue sends TERM before it kills.
_REQUEUE_IF_KILLED = """\
if [ $anml_code = 137 ]; then
    trap '' TERM
    {command}
    anml_code=$?
fi
exit $anml_code"""


def python_of(profile: ClusterProfile) -> str:
    """Return the python of a profile. In a container, that of this process means nothing."""
    return profile.python or ("python" if profile.container else sys.executable)


def python_lines(profile: ClusterProfile, argv: Sequence[str], folder: Path, killed: Sequence[str] = ()) -> list[str]:
    """Return the last lines of a job's script. folder: the experiment's, which the container must see.

    killed: the arguments of python after the kernel has killed the job. A container has none of Slurm's commands.
    """
    python = python_of(profile)
    if profile.container is None and killed:
        lines = _RUN.format(command=shlex.join([python, *argv]))
        return [lines, _REQUEUE_IF_KILLED.format(command=shlex.join([python, *killed]))]
    if profile.container is None:
        return [f"exec {shlex.join([python, *argv])}"]
    lines = [_MARK_FOR_REQUEUE, _RUN, _REQUEUE_IF_MARKED]
    values = {"variable": REQUEUE_VARIABLE, "folder": shlex.quote(str(folder))}
    values["command"] = container_command(profile, [python, *argv], folder)
    return [line.format(**values) for line in lines]


def container_command(profile: ClusterProfile, command: Sequence[str], folder: Path) -> str:
    """Return the shell line that runs a command in the profile's container, in the current folder."""
    container = profile.container
    if container is None:
        return shlex.join(command)
    binds = [str(folder), *container.binds]
    # Converted images: a container sees the home directory, where they are if the variable is not set.
    cache = '${ANML_CACHE:+--bind "$ANML_CACHE"}'
    if container.runtime == "pyxis":
        mounts = ",".join(bind if ":" in bind else f"{bind}:{bind}" for bind in binds)
        mounts = f'{shlex.quote(mounts)}"${{ANML_CACHE:+,$ANML_CACHE:$ANML_CACHE}}"'
        image = shlex.quote(container.image)
        return (
            # srun does not take over the batch job's CPUs per task.
            f'srun --ntasks=1 --cpus-per-task="${{SLURM_CPUS_PER_TASK:-1}}" --container-image={image} '
            f"--container-mounts={mounts} "
            f'--container-workdir="$PWD" {shlex.join(command)}'
        )
    words = [container.runtime, "exec", *_GPU_FLAGS.get(profile.device, [])]
    words += [word for bind in binds for word in ("--bind", bind)]
    return f'{shlex.join(words)} {cache} --pwd "$PWD" {shlex.join([container.image, *command])}'
