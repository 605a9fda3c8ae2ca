"""A Slurm of one node with two pretended GPUs, for the tests: all of it in one folder."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

GPUS = 2
NODE = "virnucpro1"
DAEMONS = ("munged", "slurmctld", "slurmd")

# More cores than there are, so that nothing but the GPUs limits how many embed jobs run at once.
SLURM_CONF = """\
ClusterName=virnucpro
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ctld}
SlurmdPort={slurmd}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
MpiDefault=none
KillWait=5
MinJobAge=600
NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 CPUs=32 RealMemory=256000 Gres=gpu:{gpus}
PartitionName=all Nodes={node} Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes={node} MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why there can be no such Slurm here, if so."""
    missing = [
        name
        for name in (*DAEMONS, "mungekey", "sbatch", "squeue")
        if not shutil.which(name, path=PATH)
    ]
    if missing:
        return f"no {', '.join(missing)} (on Debian: apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "starting Slurm's daemons needs root"


PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@dataclass(frozen=True)
class Job:
    """A job that has ended, as Slurm's own record tells of it."""

    id: int
    name: str
    state: str
    start: float
    end: float
    minutes: str
    partition: str
    tres: str
    exit: str


@dataclass(frozen=True)
class Cluster:
    """The running Slurm; `env` is what its clients need in their environment."""

    folder: Path
    env: dict[str, str]

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command, env={**os.environ, **self.env}, capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def running(self) -> dict[int, str]:
        """Names of the running jobs by id."""
        rows = self.run("squeue", "--noheader", "--states=R", "--format=%i %j").split("\n")
        return {int(job): name for job, name in (row.split() for row in rows if row)}

    def jobs(self) -> list[Job]:
        """Every job that has ended, in the order of their ids."""
        path = self.folder / "jobs.txt"
        jobs = []
        for line in path.read_text().splitlines() if path.exists() else []:
            fact = dict(re.findall(r"(\w+)=(\S*)", line))
            if "T" not in fact["StartTime"]:  # cancelled before it started
                fact["StartTime"] = fact["EndTime"]
            start, end = (
                datetime.fromisoformat(fact[key]).timestamp() for key in ("StartTime", "EndTime")
            )
            jobs.append(
                Job(
                    int(fact["JobId"]),
                    fact["Name"],
                    fact["JobState"],
                    start,
                    end,
                    fact["TimeLimit"],
                    fact["Partition"],
                    fact["Tres"],
                    fact["ExitCode"],
                )
            )
        return sorted(jobs, key=lambda job: job.id)


def most_at_once(jobs: list[Job]) -> int:
    """How many of the jobs ran at the same time, at most."""
    return max(sum(other.start <= job.start < other.end for other in jobs) for job in jobs)


def _wait(what: str, done: object, folder: Path, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        if time.monotonic() > end:
            logs = "\n".join(f"{log}:\n{log.read_text()[-1500:]}" for log in folder.glob("*.log"))
            raise RuntimeError(f"{what} in {seconds} s\n{logs}")
        time.sleep(0.2)


@contextmanager
def one_node(folder: Path) -> Iterator[Cluster]:
    """Start the daemons in the foreground, wait until the node is idle, and end them afterwards."""
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    ctld, slurmd = _free_ports(2)
    (folder / "slurm.conf").write_text(
        SLURM_CONF.format(folder=folder, host=host, ctld=ctld, slurmd=slurmd, node=NODE, gpus=GPUS)
    )
    devices = [folder / f"gpu{n}" for n in range(GPUS)]
    for device in devices:
        device.touch()
    (folder / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in devices))
    env = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}
    cluster = Cluster(folder, env)
    key, munge = folder / "munge.key", folder / "munge.socket"
    daemons: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        with (folder / f"{command[0]}.out").open("wb") as out:
            daemons.append(
                subprocess.Popen(
                    command,
                    env={**os.environ, **env},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            )

    def idle() -> bool:
        try:
            return set(cluster.run("sinfo", "--noheader", "--format=%T").split()) == {"idle"}
        except RuntimeError:
            return False

    try:
        subprocess.run(
            ["mungekey", "--create", f"--keyfile={key}"], env={**os.environ, **env}, check=True
        )
        start(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}",
            f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log",
            f"--seed-file={folder}/munged.seed", "--num-threads=2",
        )  # fmt: skip
        _wait("munged made no socket", munge.exists, folder)
        start("slurmctld", "-D")
        start("slurmd", "-D", "-N", NODE)
        _wait("the node did not become idle", idle, folder)
        yield cluster
    finally:
        if len(daemons) == len(DAEMONS):
            subprocess.run(
                ["scancel", f"--user={os.environ.get('USER', 'root')}"],
                env={**os.environ, **env},
                stderr=subprocess.DEVNULL,
                timeout=60,
            )
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(daemons):
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
