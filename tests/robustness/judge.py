"""Run a call in a process of its own and judge how it ends: in time, in little memory, with one clear message."""

import contextlib
import io
import multiprocessing
import os
import re
import resource
import traceback
import unicodedata
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from common import cli

SECONDS, MEGABYTES = 20, 1000  # limits of a case

Case = Callable[[], object]


class Finding(Exception):
    """A case that ended badly."""


def is_plain(text: str) -> bool:
    """Whether a text has no character, apart from line breaks, that controls a terminal."""
    return all(c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


def judge(call: Case) -> str:
    """Run a call as a script runs its main: 'handled' or 'refused'.

    Raises:
        Finding: it ended badly.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.run(lambda: call() and None)
        except SystemExit as end:
            code = end.code
        except Finding:
            raise
        except BaseException:
            raise Finding(traceback.format_exc()) from None
    printed, complaint = (stream.buffer.getvalue().decode("utf-8", "replace") for stream in (out, err))
    if "Traceback" in complaint or "Warning: " in complaint:
        raise Finding(f"exit code {code}: {complaint}")
    if not is_plain(printed + complaint):
        raise Finding(f"characters that control a terminal: {printed + complaint!r}")
    if code == 0:
        return "handled"
    text = complaint.partition("error: ")[2]
    if code not in (1, 2) or "out of memory" in text or not re.search(r"/|--\w|arguments?", text):
        raise Finding(f"exit code {code}, and no clear message: {complaint!r}")
    if len(text) > 4000 or text.count("\n") > 20:
        raise Finding(f"a message of {len(text)} characters: {text[:2000]!r}")
    return "refused"


def _work(make: Callable[[], Case], megabytes: float, pipe: Connection) -> None:
    """In the forked process: make a case, run it and send how it ended."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # C libraries write there
    allowed = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 8 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))  # protects the machine

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    try:
        call, before = make(), peak()
        end, text = judge(call), ""
        if (more := peak() - before) > megabytes:
            raise Finding(f"it took {more:.0f} MB ({end})")
    except Finding as finding:
        end, text = "finding", str(finding)
    except BaseException:
        end, text = "finding", f"the fuzz run itself failed: {traceback.format_exc()}"
    pipe.send((end, text))


def watched(make: Callable[[], Case], megabytes: float = MEGABYTES) -> tuple[str, str]:
    """Make and run a case in a forked process: 'handled', 'refused' or 'finding', and a text for the last.

    Args:
        megabytes: that the call may take beyond what the process has before.
    """
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(make, megabytes, writer))
    process.start()
    writer.close()
    try:
        return reader.recv() if reader.poll(SECONDS) else ("finding", f"it hung for {SECONDS} s")
    except EOFError:
        return "finding", "its process died"
    finally:
        process.kill()
        process.join()
