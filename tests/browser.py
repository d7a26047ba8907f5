"""Pages in headless Chromium, without a driver: a script runs in a copy of the page and returns values."""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import unquote

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-extensions --enable-logging=stderr"
)


def ask(page: Path, script: str, width: int) -> tuple[object, list[str]]:
    """Open a page from the file system, as a user does, and run a script in it.

    Args:
        script: the body of a function; it returns anything that JSON can hold.
        width: of the page in px.

    Returns:
        The script's result, and the lines of the console.
    """
    run = "parent.postMessage(JSON.stringify((() => {" + script + "})()), '*')"
    copy, frame = page.with_name("copy.html"), page.with_name("frame.html")
    copy.write_text(page.read_text(encoding="utf-8") + f"<script>{run}</script>", encoding="utf-8")
    listen = "onmessage = e => document.documentElement.dataset.answer = encodeURIComponent(e.data)"
    style = f"border:0;width:{width}px;height:800px"  # a window has 500 px at least, a frame may be narrower
    frame.write_text(f'<body style="margin:0"><script>{listen}</script><iframe style="{style}" src="{copy.name}">')
    with tempfile.TemporaryDirectory() as profile:  # an empty one
        command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={profile}", "--dump-dom", "--virtual-time-budget=2000"]
        done = subprocess.run([*command, frame.as_uri()], capture_output=True, text=True, timeout=60, check=False)
    answer = re.search(r'data-answer="([^"]*)"', done.stdout)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert answer, f"no answer: {console} {done.stderr[-1000:]}"
    return json.loads(unquote(answer[1])), console
