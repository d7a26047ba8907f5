"""Pages in headless Chromium, without a driver: a script runs in a copy of the page and returns values."""

import contextlib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-extensions --enable-logging=stderr"
)


def _chromium(*flags: str) -> subprocess.CompletedProcess:
    with tempfile.TemporaryDirectory() as profile:  # an empty one
        command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={profile}", *flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@contextlib.contextmanager
def _framed(page: Path, script: str, width: int, height: int) -> Iterator[str]:
    """The address of a frame around a copy of a page; a window has 500 px at least, a frame may be narrower."""
    copy, frame = page.with_name("copy.html"), page.with_name("frame.html")
    copy.write_text(page.read_text(encoding="utf-8") + f"<script>{script}</script>", encoding="utf-8")
    listen = "onmessage = e => document.documentElement.dataset.answer = encodeURIComponent(e.data)"
    style = f"border:0;width:{width}px;height:{height}px"
    frame.write_text(f'<body style="margin:0"><script>{listen}</script><iframe style="{style}" src="{copy.name}">')
    try:
        yield frame.as_uri()
    finally:
        copy.unlink()
        frame.unlink()


def ask(page: Path, script: str, width: int) -> tuple[object, list[str]]:
    """Open a page from the file system, as a user does, and run a script in it.

    Args:
        script: the body of a function; it returns anything that JSON can hold.
        width: of the page in px.

    Returns:
        The script's result, and the lines of the console.
    """
    with _framed(page, "parent.postMessage(JSON.stringify((() => {" + script + "})()), '*')", width, 800) as address:
        done = _chromium("--dump-dom", "--virtual-time-budget=2000", address)
    answer = re.search(r'data-answer="([^"]*)"', done.stdout)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert answer, f"no answer: {console} {done.stderr[-1000:]}"
    return json.loads(unquote(answer[1])), console


def screenshot(page: Path, picture: Path, width: int, height: int) -> None:
    """Save a picture of a page in a window of so many px."""
    with _framed(page, "", width, height) as address:
        _chromium(f"--window-size={max(width, 500)},{height}", f"--screenshot={picture}", address)
