"""Tasks that are commands: run once, in any order their needs allow, here or on the workers of a Dask scheduler.

A task is one `modistill` command in a process of its own, and done when its last file is there. So a list of tasks may be
interrupted anywhere and run again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modistill.errors import ModistillError, RecipeError
from modistill.files import read_json, write_json

__all__ = ["Task", "run_tasks"]

_LOOK_SECONDS = 10  # between two looks at the workers of a scheduler
_SOME_FAILED = 3  # exit code of a command that did what could be done; the table counts the rest as failed


@dataclass(frozen=True)
class Task:
    """One command of a benchmark.

    Attributes:
        name: such as "train had_net/1".
        command: words after `modistill`.
        done: the file that is there once it succeeded.
        needs: names of the tasks that must be done before.
        resumes: file that tells an interrupted run of this command: `--resume` is then added.
        cost: where wall time and peak memory are written; None for nowhere.
    """

    name: str
    command: tuple[str, ...]
    done: Path
    needs: tuple[str, ...] = ()
    resumes: Path | None = None
    cost: Path | None = None


def run_tasks(
    todo: Mapping[str, Task],
    *,
    minutes: float | None = None,
    scheduler: str | None = None,
    on_task: Callable[[Task, int, int], None] | None = None,
) -> bool:
    """Run what is not done yet.

    Args:
        todo: from `tasks`.
        minutes: stop after so many; a training that runs then writes a checkpoint and goes on the next time.
        scheduler: address of a Dask scheduler whose workers run the tasks; None for one after the other, here.
        on_task: called before each task with its number and the number of all.

    Returns:
        Whether everything is done.

    Raises:
        ModistillError: a command failed, or the scheduler cannot be reached.
        RecipeError: a limit of time for tasks that run elsewhere.
        KeyboardInterrupt: Ctrl-C came; the running task was waited for first, and its cost kept.
    """
    if scheduler is not None and minutes is not None:
        raise RecipeError("--minutes and --dask exclude each other", remedy="limit the time of the workers instead")
    if scheduler is not None:
        return _run_with_dask(todo, scheduler, on_task)
    end = None if minutes is None else time.monotonic() + 60 * minutes
    for number, task in enumerate(todo.values(), start=1):
        if task.done.exists():
            continue
        if on_task is not None:
            on_task(task, number, len(todo))
        if not _run(task, end):
            return False
    return True


def _run(task: Task, end: float | None = None) -> bool:
    """Run one task; False if the time was over before it was done."""
    if task.done.exists():
        return True
    resume = ("--resume",) if task.resumes is not None and task.resumes.exists() else ()
    command = [sys.executable, "-c", "from modistill.cli import main; main()", *task.command, *resume]
    code, peak, begin = None, 0, time.monotonic()
    process = subprocess.Popen(command)
    try:
        code, peak = _wait(process, end)
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, which a terminal sends to the child as well, or SIGTERM for us alone
        code, peak = _wait(process, begin)  # it writes its checkpoint; a second Ctrl-C leaves at once
        raise
    finally:
        if task.cost is not None:
            _add_cost(task.cost, time.monotonic() - begin, peak, whole=code == 0)
    if code is None:
        return False
    if code not in (0, _SOME_FAILED) and not task.done.exists():
        raise ModistillError(
            f"{task.name} ended with exit code {code}", remedy=f"see above: modistill {' '.join(task.command)}"
        )
    if not task.done.exists():
        task.done.touch()
    return True


def _add_cost(path: Path, seconds: float, peak: int, *, whole: bool) -> None:
    """Add a piece of a training to its cost; the file bears its final name once the training is whole."""
    part = path.with_suffix(".part.json")
    before = read_json(part) if part.exists() else {"seconds": 0.0, "peak_bytes": 0}
    cost = {"seconds": round(before["seconds"] + seconds, 1), "peak_bytes": max(before["peak_bytes"], peak)}
    write_json(path if whole else part, cost)
    if whole:
        part.unlink(missing_ok=True)


def _wait(process: subprocess.Popen[bytes], end: float | None) -> tuple[int | None, int]:
    """Exit code and peak of resident memory in bytes; no code if the time was over and the process was asked to stop."""
    stopped = False
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return (None if stopped else process.returncode), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if end is not None and time.monotonic() > end and not stopped:
            process.send_signal(signal.SIGTERM)
            stopped = True
        time.sleep(0.05)


def _run_with_dask(todo: Mapping[str, Task], scheduler: str, on_task: Callable[[Task, int, int], None] | None) -> bool:
    """As many tasks at a time as the workers have threads.

    Given all at once, the scheduler would deal them out by its guess of half a second each, and one worker would be left with
    hours of training while others have nothing to do.
    """
    try:
        from distributed import Client, wait
    except ModuleNotFoundError as error:
        raise RecipeError("Dask is not installed", remedy="pip install 'modistill[dask]'") from error
    try:
        client = Client(scheduler, timeout="10s")
    except (OSError, ValueError) as error:
        raise RecipeError(f"no Dask scheduler answers at {scheduler}", remedy="start one: dask scheduler") from error
    waiting = {name: task for name, task in todo.items() if not task.done.exists()}
    running: dict[Any, str] = {}
    with client:
        while waiting or running:
            free = sum(client.nthreads().values()) - len(running)
            unmet = {*waiting, *running.values()}
            ready = [name for name, task in waiting.items() if unmet.isdisjoint(task.needs)]
            for name in ready[: max(free, 0)]:
                task = waiting.pop(name)
                if on_task is not None:
                    on_task(task, len(todo) - len(waiting), len(todo))
                running[client.submit(_run, task, key=f"{name}-{task.done}", pure=False)] = name
            with suppress(TimeoutError):  # look again: workers may have come
                wait(list(running), timeout=_LOOK_SECONDS, return_when="FIRST_COMPLETED")
            for future in [future for future in running if future.done()]:
                future.result()
                del running[future]
    return True
