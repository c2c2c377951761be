"""Commands as processes of their own, killed at random moments; what came of it is counted."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hb_ssl.files import read_json, write_json_atomic
from hb_ssl.runs import describe_environment

REPOSITORY = Path(__file__).resolve().parents[2]
ROUNDS = int(os.environ.get("HB_SSL_KILL_ROUNDS", "8"))
SEED = int(os.environ.get("HB_SSL_KILL_SEED", "0"))
RESULTS = os.environ.get("HB_SSL_KILL_RESULTS")
KILLS = 3  # at most, a round

# Imports everything once, then forks a process for each command: a start costs milliseconds.
SERVER = """
import json, os, signal, sys, time
import hb_ssl.batch, hb_ssl.cross_validation, hb_ssl.hub, hb_ssl.report, hb_ssl.training
from hb_ssl import cli
from hb_ssl.config import parse_config
from hb_ssl.pretraining.config import PretrainConfig
from hb_ssl.pretraining.run import pretrain

def run(arguments):
    if arguments[0] != "pretrain":
        return cli.main(arguments)
    (config,) = parse_config([PretrainConfig], arguments[1:])
    return cli.run_command(lambda: pretrain(config) and None)

for line in sys.stdin:
    arguments, kill_after, environment = json.loads(line)
    pid = os.fork()
    if not pid:
        os.environ.update(environment)
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os._exit(run(arguments))
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)  # a finished process is still to be waited for: no other pid
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Commands:
    """Runs ``hb-ssl`` commands, and ``pretrain``, and kills them."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.errors = (folder / "errors.txt").open("w+")
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.errors, text=True, cwd=folder,
            env={**os.environ, "HB_SSL_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1",
                 "PYTHONPATH": str(REPOSITORY), **environment},
        )  # fmt: skip

    def run(self, arguments: list[str], kill_after: float | None = None, **environment: str) -> int:
        """Exit code; -9 if it was killed before its end."""
        assert self.server.stdin and self.server.stdout
        self.server.stdin.write(json.dumps([arguments, kill_after, environment]) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def timed(self, arguments: list[str]) -> float:
        """Seconds of an unbroken run."""
        started = time.monotonic()
        assert self.run(arguments) == 0, self.said()
        return time.monotonic() - started

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read()[-2000:]

    def close(self) -> None:
        assert self.server.stdin
        self.server.stdin.close()
        self.server.wait()
        self.errors.close()


@dataclass
class Tally:
    """What the rounds of one command came to.

    Attributes:
        rounds: how many ended as the unbroken run did.
        kills: how often a process was killed before its end, all rounds together.
        cold: rounds that began without any cache.
        unbroken_seconds: what the command takes when nobody kills it.
    """

    unbroken_seconds: float
    rounds: int = 0
    kills: int = 0
    cold: int = 0


def interrupted(
    commands: Commands,
    arguments: list[str],
    tally: Tally,
    rng: np.random.Generator,
    resume: tuple[str, ...] = ("--resume",),
    after_kill: Callable[[], None] = lambda: None,
    cold_cache: Path | None = None,
) -> None:
    """Starts, kills up to ``KILLS`` times, each time resumes, and lets the last one end.

    Args:
        commands: runs them.
        arguments: of the command.
        tally: where the kills are counted.
        rng: chooses the moments.
        resume: added from the second start on.
        after_kill: checks what a killed process left.
        cold_cache: cache folder of its own for this round.
    """
    environment = {"HB_SSL_CACHE": str(cold_cache)} if cold_cache else {}
    tally.cold += bool(cold_cache)
    more: tuple[str, ...] = ()
    for _ in range(KILLS):
        moment = float(rng.uniform(0, tally.unbroken_seconds * (2 if cold_cache else 1)))
        code = commands.run([*arguments, *more], kill_after=moment, **environment)
        assert code in (0, -9), commands.said()
        if code == -9:
            tally.kills += 1
            after_kill()
        more = resume
        if rng.random() < 0.4:
            break
    assert commands.run([*arguments, *more], **environment) == 0, commands.said()


def write_results(tallies: dict[str, Tally]) -> None:
    """To the file that HB_SSL_KILL_RESULTS names, if it does; what other runs counted stays."""
    if not RESULTS:
        return
    path = Path(RESULTS)
    commands = dict(read_json(path)["commands"]) if path.is_file() else {}
    for name, tally in tallies.items():
        made = {"HB_SSL_KILL_ROUNDS": ROUNDS, "HB_SSL_KILL_SEED": SEED, **asdict(tally)}
        commands[name] = {**made, "unbroken_seconds": round(tally.unbroken_seconds, 2)}
    environment = describe_environment()
    write_json_atomic(
        path,
        {
            "command": f"HB_SSL_KILL_ROUNDS=N HB_SSL_KILL_RESULTS=benchmarks/results/{path.name} "
            "bash scripts/test.sh -m slow tests/slow/test_kill_and_resume.py",
            "meaning": "rounds: ended identical to the unbroken run; cold: began without a cache",
            "rounds": sum(command["rounds"] for command in commands.values()),
            "kills": sum(command["kills"] for command in commands.values()),
            "commands": commands,
            "environment": {
                name: environment[name] for name in ("python", "platform", "cpu_count", "packages")
            },
        },
    )
