"""The command vrgnet in this process; tests/test_package.py installs it."""

import pytest

import common
from common.commands import main
from common.data.images import write_image
from tests.conftest import photo


def test_every_sub_command_runs_where_the_user_stands(tmp_path, monkeypatch, capsys, quick, generator):
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "photos" / "a.png", photo(20, 30, 0))
    for words, expected in (
        (
            f"rain --data_path photos --save_layer --use_gpu false --netED {generator}",
            f"1 pairs made in {tmp_path / 'pairs'}",
        ),
        ("derain --data_path pairs/rain --use_gpu false", f"1 images derained into {tmp_path / 'derained'}"),
        ("metrics --pred derained --gt pairs/norain", "PSNR-Y"),
        ("compose --clean photos --streaks pairs/layer --num 1 --out more", "1 pairs"),
        ("pack --data_path more/rain --gt_path more/norain --out more.h5", "1 pairs"),
    ):
        assert main(words.split()) == 0
        assert expected in capsys.readouterr().out
    assert main(["derain", "--data_path", "nothing"]) == 2
    assert "error: --data_path: there is no" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, code, expected",
    [
        ("--version", 0, f"vrgnet {common.__version__}\n"),
        ("--help", 0, "    compose   "),
        ("derain --help", 0, "usage: vrgnet derain"),
        ("rian", 2, "choose from"),
        ("rain", 2, "vrgnet rain --help lists the flags"),
    ],
)
def test_what_it_says(words, code, expected, capsys):
    with pytest.raises(SystemExit) as end:
        main(words.split())
    out, err = capsys.readouterr()
    assert end.value.code == code and expected in (err if code else out)
