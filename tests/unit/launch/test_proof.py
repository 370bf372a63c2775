"""Trainers that connect by gloo find out whether somebody else is at the other end."""

import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import psutil

PROGRAM = Path(__file__).parents[1] / "programs" / "trainers_program.py"


def start(directory: Path, *secrets: str) -> list[subprocess.Popen[str]]:
    return [
        subprocess.Popen(
            [sys.executable, PROGRAM, str(number), directory, secret],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(PROGRAM.parents[3])},
        )
        for number, secret in enumerate(secrets)
    ]


def end(trainers: list[subprocess.Popen[str]]) -> list[str]:
    try:
        return [trainer.communicate(timeout=120)[0] for trainer in trainers]
    finally:
        for trainer in trainers:
            trainer.kill()


def not_proven(number: int) -> str:
    return f"trainer {number} has not proven itself on the connection that gloo has to it"


def test_trainers_of_a_job_are_taken_for_what_they_are(tmp_path):
    assert end(start(tmp_path, "secret", "secret")) == ["proven\n"] * 2


def test_who_does_not_know_the_secret_is_no_trainer(tmp_path):
    first, second = end(start(tmp_path, "secret", "another"))
    assert not_proven(1) in first
    assert not_proven(0) in second


def listener(trainer: subprocess.Popen[str]) -> tuple[str, int]:
    """Where gloo listens."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for one in psutil.Process(trainer.pid).net_connections("tcp"):
            if one.status == "LISTEN":
                return one.laddr
        time.sleep(0.01)
    raise AssertionError("gloo does not listen")


def test_a_stranger_in_the_place_of_a_trainer_is_found_out(tmp_path):
    """It connects before the trainers do, and says the numbers that gloo's connections have."""
    (tmp_path / "hold").touch()
    trainers = start(tmp_path, "secret", "secret")
    strangers = [
        (number, socket.create_connection(listener(trainer), 10))
        for trainer in trainers
        for number in range(8)
    ]
    for number, stranger in strangers:
        stranger.sendall(struct.pack("<q", number))
    time.sleep(0.5)  # gloo takes them in
    (tmp_path / "hold").unlink()
    said = end(trainers)
    for _, stranger in strangers:
        stranger.close()
    # One of the two waits to be called by the other one, as their ports decide: it is deceived.
    assert not_proven(1) in said[0] or not_proven(0) in said[1]
