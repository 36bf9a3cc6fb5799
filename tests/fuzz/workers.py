"""Work in forked processes, where nothing can hang, abort or eat the memory of the one that counts."""

from __future__ import annotations

import multiprocessing
import os
import resource
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

FORK = multiprocessing.get_context("fork")
"""Not a new interpreter each, which would import torch."""
MEMORY = 16 * 2**30
"""Bytes of addresses that a worker may use: a size of 10¹² is refused by the system, not granted."""


class Verdict(NamedTuple):
    """How something ended, and what there is to tell of it."""

    name: str
    detail: str = ""


HANG, DIED, RAISED = "HANG", "DIED", "FOREIGN EXCEPTION"


def judged(jobs: Sequence[Any], judge: Callable[[Any], Verdict], seconds: float) -> list[Verdict]:
    """The verdict on every job: HANG if it takes longer than `seconds`, DIED if its process does not survive it.

    RAISED if `judge` itself raises.
    """
    found: list[Verdict] = []
    while len(found) < len(jobs):
        found += _until_one_fails(jobs[len(found) :], judge, seconds)
    return found


def _until_one_fails(jobs: Sequence[Any], judge: Callable[[Any], Verdict], seconds: float) -> list[Verdict]:
    ours, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_work, args=(jobs, judge, theirs))
    process.start()
    theirs.close()
    found: list[Verdict] = []
    try:
        while len(found) < len(jobs):
            found.append(ours.recv() if ours.poll(seconds) else Verdict(HANG, str(jobs[len(found)])))
            if found[-1].name == HANG:
                break
    except EOFError:
        process.join()
        found.append(Verdict(DIED, f"{jobs[len(found)]}: exit status {process.exitcode}"))
    process.kill()
    process.join()
    return found


def _work(jobs: Sequence[Any], judge: Callable[[Any], Verdict], answers: Connection) -> None:
    quiet()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for job in jobs:
        try:
            answers.send(judge(job))
        except Exception:
            answers.send(Verdict(RAISED, traceback.format_exc()))


def quiet() -> None:
    """Nothing that libraries print or warn of is of interest here."""
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
