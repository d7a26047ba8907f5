"""What commands say: --quiet, progress bars, signals, and the pages of --help."""

import errno
import importlib
import os
import signal
import sys
import time

import pytest

from common import cli, files, terminal
from common.data.images import write_image
from common.errors import UserError
from common.evaluation import metrics
from for_syn import generate_rain, train_syn_joint
from tests.conftest import begin, folders, photo
from tests.golden import ROOT

COMMANDS = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("for_*/*.py"), *ROOT.glob("common/**/*.py")]
    if "cli.Parser(__doc__" in path.read_text()
)


SOON = 20  # seconds; 0.3 where nothing else runs


def module_of(command):
    return importlib.import_module(command.removesuffix(".py").replace("/", "."))


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "110")
    with pytest.raises(SystemExit) as end:
        module_of(command).parse_args(["--help"])
    says = capsys.readouterr().out
    assert end.value.code == 0 and str(ROOT) not in says and cli.EXIT_CODES in " ".join(says.split())
    assert ("python " + command.rpartition("/")[2] if command.startswith("for_") else says.split(" [")[0][7:]) in says


@pytest.fixture
def pair(tmp_path):
    """Flags of metrics for one pair."""
    for folder, seed in (("pred", 1), ("gt", 2)):
        write_image(tmp_path / folder / "a.png", photo(20, 30, seed))
    return ["--pred", str(tmp_path / "pred"), "--gt", str(tmp_path / "gt")]


def test_quiet_prints_results_alone(pair, tmp_path, capsys):
    write_image(tmp_path / "gt" / "b.png", photo(20, 30, 3))
    out, flags = sys.stdout, [*pair, "--csv", str(tmp_path / "m.csv")]
    assert cli.run(lambda: metrics.main(flags)) == 0
    said = capsys.readouterr().out
    assert cli.run(lambda: metrics.main([*flags, "--quiet"])) == 0
    quiet = capsys.readouterr().out
    assert "by the rule" in said and "written" in said and "by the rule" not in quiet and "written" not in quiet
    assert "PSNR-Y [dB]" in quiet and quiet.splitlines()[1:] == said.splitlines()[2:-1] and sys.stdout is out
    assert "note: the table is over the 1 images" in quiet


def test_quiet_keeps_errors_and_warnings(pair, tmp_path, generator, capsys):
    assert cli.run(lambda: metrics.main(["--pred", "x", "--gt", "y", "--quiet"])) == 2
    assert capsys.readouterr().err.startswith("error: --pred")
    (tmp_path / "pred" / "broken.png").write_bytes(b"x")
    flags = ["--data_path", tmp_path / "pred", "--netED", generator, "--save_path", tmp_path / "out", "--use_gpu", "0"]
    assert cli.run(lambda: generate_rain.main([*map(str, flags), "--density", "0.6", "--quiet"])) == 1
    said = capsys.readouterr()
    assert said.out == "" and "warning: --density 0.6 is missed" in said.err and "broken.png" in said.err


def test_quiet_training_says_nothing_but_results(pairs_folder, tmp_path, capsys):
    tiny = "--patchSize 16 --nz 4 --stage 1 --nef 4 --ndf 4 --batchSize 2 --niter 1 --iters_per_epoch 2 --use_gpu 0"
    flags = [*folders(pairs_folder, tmp_path / "m"), *tiny.split(), "--manualSeed", "1"]
    assert cli.run(lambda: train_syn_joint.main([*flags, "--quiet"])) == 0
    said = capsys.readouterr()
    assert said.out == "" and said.err == ""
    assert cli.run(lambda: train_syn_joint.main([*flags, "--niter", "2", "--dry_run", "--quiet"])) == 0
    assert "would train" in capsys.readouterr().out  # that is the result


def test_progress_in_a_file_is_a_line_from_time_to_time(monkeypatch, capsys):
    list(terminal.progress_bar(range(3), desc="turning"))
    assert capsys.readouterr().err == ""  # done before the first line
    monkeypatch.setattr(terminal, "EVERY", 1e-9)
    list(terminal.progress_bar(range(3), desc="turning", leave=False))
    lines = capsys.readouterr().err.split("\n")
    assert [line.partition("%")[0] for line in lines] == ["turning:  33", "turning:  67", "turning: 100", ""]


def test_closed_streams_are_no_trouble(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert list(terminal.progress_bar(range(3))) == [0, 1, 2]  # in a program of others
    assert cli.run(lambda: print("x", file=sys.stderr)) == 0 and sys.stdout is not None


def test_what_is_printed_into_a_file_is_there_at_once(tmp_path, monkeypatch):
    def main():
        print("begun")
        assert (tmp_path / "out").read_text() == "begun\n"

    with open(tmp_path / "out", "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert cli.run(main) == 0


def test_a_full_disk_is_no_mistake_in_the_flags(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    assert cli.run(lambda: write_image(tmp_path / "a.png", photo(2, 2, 1))) == 1
    assert cli.run(lambda: full()) == 1
    assert capsys.readouterr().err.count("No space left on device") == 2


def test_a_signal_ends_a_command_soon(tmp_path, generator):
    for k in range(12):
        write_image(tmp_path / "photos" / f"{k}.png", photo(300, 400, k))
    flags = ["--data_path", tmp_path / "photos", "--save_path", tmp_path / "out", "--netED", generator]
    # It is ignored under nohup.
    before = signal.signal(signal.SIGHUP, signal.default_int_handler)
    process = begin(sys.executable, ROOT / "for_syn" / "generate_rain.py", *flags, "--use_gpu", "false", env=os.environ)
    signal.signal(signal.SIGHUP, before)
    while len(list((tmp_path / "out").glob("rain/*.png"))) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGHUP)
    asked = time.monotonic()
    said, _ = process.communicate(timeout=60)
    assert time.monotonic() - asked < SOON and process.returncode == 130 and "the same command goes on" in said
    assert not (tmp_path / "out" / ".lock").exists()


def test_nohup_keeps_a_command_alive(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ignored = cli.run(lambda: signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN), terminal.ending_signals()
    signal.signal(signal.SIGHUP, before)
    assert ignored == (0, [signal.SIGTERM])


def test_names_in_errors_do_not_control_the_terminal(capsys):
    def main():
        raise UserError("d\x1b[2J\x85\u202e\udcff\ne")

    assert cli.run(main) == 2
    assert capsys.readouterr().err == "error: d\\x1b[2J\\x85\\u202e\\udcff\ne\n"
