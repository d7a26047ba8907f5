"""Curves: what stands in log.csv is what is drawn, and what is no log is refused in a line."""

import numpy as np
import pytest

from common.data.images import read_image
from common.errors import UserError
from common.evaluation import curves

HEAD = "epoch,step,seconds,mse,val_psnr_y,lr/D,lr/ED\n"


@pytest.fixture
def logs(tmp_path):
    for name, factor in (("one", 1), ("two", 2)):
        rows = [f"{i},{10 * i},1800,{factor / 10**i},{30 + i if i % 2 else ''},{1e-4},{2e-4}" for i in (1, 2, 3)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.csv").write_text(HEAD + "\n".join(rows) + "\n")
    return tmp_path


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the newest figure that hold lines."""
    figures, picture = [], curves.picture
    monkeypatch.setattr(curves, "picture", lambda figure: figures.append(figure) or picture(figure))
    return lambda: [axis for axis in figures[-1].axes if axis.lines]


def test_a_panel_for_each_value_and_a_line_for_each_training(logs, drawn, capsys):
    flags = ["--log_dir", str(logs / "one"), str(logs / "two"), "--out", str(logs / "deep" / "curves.png")]
    assert curves.main(flags) == 0
    assert "picture: " in capsys.readouterr().out
    picture = read_image(logs / "deep" / "curves.png")
    assert picture.ndim == 3 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 10
    mse, psnr, rates = drawn()
    assert [line.get_label() for line in mse.lines] == ["one", "two"] and mse.get_yscale() == "log"
    assert np.allclose(mse.lines[1].get_xydata(), [[10, 0.2], [20, 0.02], [30, 0.002]])
    assert np.allclose(psnr.lines[0].get_xydata(), [[10, 31], [30, 33]])  # validated every second epoch
    assert [line.get_label() for line in rates.lines] == ["one D", "one ED", "two D", "two ED"]


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "holds no log.csv; name the --log_dir of a training"),
        (HEAD, "is not the log of a training, or no epoch of it is done"),
        ("a,b\n1,2\n", "is not the log of a training"),
        (HEAD + "1,x,3,4,5,6,7\n", "is not the log of a training"),
    ],
)
def test_what_is_no_log(text, message, tmp_path):
    if text is not None:
        (tmp_path / "log.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        curves.main(["--log_dir", str(tmp_path), "--out", str(tmp_path / "c.png")])


def test_the_name_of_the_picture(logs):
    with pytest.raises(UserError, match=r"--out: .* must end in \.png or \.jpg"):
        curves.main(["--log_dir", str(logs / "one"), "--out", str(logs / "c.txt")])
