"""Every script of experiments/ runs in small: one smoke test each."""

import pytest

from experiments import knobs_report

pytestmark = pytest.mark.usefixtures("quick")


def test_knobs_report(generator, tmp_path, monkeypatch):
    for name, value in (("PLACES", 2), ("SIDE", 48), ("RANGES", {"angle": (-45, 45)})):
        monkeypatch.setattr(knobs_report, name, value)
    words = ["--netED", str(generator), "--out", str(tmp_path / "out"), "--pictures", "2", "--use_gpu", "false"]
    assert knobs_report.main(words) == 0
    text = (tmp_path / "out" / "knobs.md").read_text()
    assert text.startswith("# What the knobs do to the rain of ED.pt") and text.count("\n| angle |") == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"knobs.md", "knobs.png", "angle.gif"}
