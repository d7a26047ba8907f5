"""Everything that ever broke, and what is made to break: each ends as tests/corpus says, in little time and memory.

tests/corpus/KIND/END/FILE: files that the fuzz runs found (tests/fuzz.py), by what reads them and how that is to end.
"""

import argparse
import csv
import errno
import importlib
import io
import json
import os
import shutil
import signal
import warnings
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from common import cli, derainer
from common.data import compose, pack
from common.data.images import ImageError, image_format, read_image, write_image
from common.data.pairs import PairList
from common.errors import UserError
from common.evaluation import curves, metrics, report
from common.files import cell, read_small, text_of
from common.generation.manifest import Manifest
from common.training import checkpoint
from common.training.log import Log
from common.training.run import FRACTIONS, MAY_BE_ZERO, _are_values
from for_syn import generate_rain, test_syn_aug, train_syn_aug
from tests import fuzz, mutate
from tests.conftest import photo
from tests.golden import ROOT

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(path for path in CORPUS.rglob("*") if path.is_file())


class Late(BaseException):
    """It hangs."""


@pytest.fixture(autouse=True)
def in_time():
    """Nothing here waits for ever."""

    def late(*_):
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """What fuzz cases are made of."""
    with fuzz.stubs():
        return fuzz.Seeds(tmp_path_factory.mktemp("seeds"))


class Light:
    """Within it no more than so many MB are taken."""

    def __init__(self, megabytes):
        self.most = megabytes

    def __enter__(self):
        fuzz.forget_peak()
        self.before = fuzz.peak()

    def __exit__(self, *error):
        if error[0] is None:
            assert fuzz.peak() - self.before < self.most


# --- kept files ------------------------------------------------------------------------------------------------------


def call_of(kind, path, tmp_path):
    """What reads a file of the corpus."""
    if kind == "image":
        return fuzz._looked_at(tmp_path / f"x{path.suffix}", path.read_bytes())
    if kind in ("critic", "generator"):
        if kind == "critic":
            return lambda: checkpoint.load_weights(mutate.small_nets()["D"], path, "D", "--net")
        return lambda: checkpoint.load_generator(path, "--netED")
    if kind == "list":
        shutil.copy(path, tmp_path / "real_world.txt")
        return lambda: [pair.name for pair in PairList(tmp_path)]
    if kind == "manifest":
        shutil.copy(path, tmp_path / "manifest.csv")

        def mended():
            found = Manifest(tmp_path)
            found.mend()
            with found.finished():
                pass

        return mended
    if kind == "log":
        shutil.copy(path, tmp_path / "log.csv")
        return lambda: curves.main(["--log_dir", str(tmp_path), "--out", f"{tmp_path}/c.png"])
    if kind == "resumed_log":
        shutil.copy(path, tmp_path / "log.csv")
        return lambda: Log(str(tmp_path), {}, 1, 1, False).epoch({"epoch": 2, "step": 2, "seconds": 0.1})
    raise AssertionError(f"who reads {path}?")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CORPUS)))
def test_what_once_broke_ends_well(path, tmp_path):
    kind, end = path.relative_to(CORPUS).parts[:2]
    with Light(16e-6 * 30000 * 3000 if "large" in path.name else 200), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert fuzz.judge(call_of(kind, path, tmp_path)) == end
    told = [warning for warning in told if issubclass(warning.category, (UserWarning, RuntimeWarning))]
    assert kind == "image" or not told  # of Pillow's: tests/test_footprint.py


def test_the_corpus_is_small():
    assert len(FILES) > 30 and all(path.stat().st_size < 20_000 for path in FILES)


# --- bombs -----------------------------------------------------------------------------------------------------------

PICTURE = Image.fromarray(photo(20, 24, 0))


def patched(kind, at, data, **options):
    """A file with a few bytes replaced, at a place from its start or after a mark."""
    whole = bytearray(mutate.encoded(PICTURE, kind, **options))
    at = whole.find(at) + len(at) if isinstance(at, bytes) else at
    whole[at : at + len(data)] = data
    return bytes(whole)


def webp(width, height):
    """An animated WebP with a canvas of any size."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return patched("WEBP", 24, sides, save_all=True, append_images=[Image.fromarray(photo(20, 24, 1))])


def texts(name, head, depth):
    """A good PNG with 80 MB of text or profile in a few KB."""
    bomb = zlib.compress(bytes(8 * 10**7), 9)
    return mutate.png(20, 20, depth, 2, mutate.chunk(name, head + bomb), bytes(20 * (1 + 20 * 3 * depth // 8)))


MEGAPIXELS = r"too large to be a photo \(\d+ megapixels, up to 179 are read\); scale it down first"
BOMBS = {
    "png": (lambda: mutate.png(30000, 30000), MEGAPIXELS),
    "png of 16 bits": (lambda: mutate.png(65535, 65535, 16), MEGAPIXELS),
    "png, the largest": (lambda: mutate.png(2**31 - 1, 2**31 - 1), MEGAPIXELS),
    "jpeg": (lambda: patched("JPEG", b"\xff\xc0\0\x11\x08", b"\xff\xdc\xff\xdc"), MEGAPIXELS),
    "bmp": (lambda: patched("BMP", 18, (10**5).to_bytes(4, "little") * 2), MEGAPIXELS),
    "tiff": (lambda: mutate.tiff(mutate.tiff_tags(10**5, 10**5)), MEGAPIXELS),
    "tiff of 16 bits": (lambda: mutate.tiff(mutate.tiff_tags(10**5, 10**5, 16)), MEGAPIXELS),
    "webp": (lambda: webp(2**24, 2**24), MEGAPIXELS),
    "webp, all it may have": (lambda: webp(16384, 16384), MEGAPIXELS),
    "long webp": (lambda: webp(8_323_096, 20), "has 8323096x20 px, sides up to 65536 px are read"),
    "long png": (lambda: mutate.png(20, 10**6), "has 20x1000000 px, sides up to 65536 px are read"),
    "png whose chunk lies": (
        lambda: mutate.png(24, 20, 16, 0, b"\xff\xff\xff\xf0tEXtx"),
        r"can't be (decoded|read)",
    ),
    "tiles": (
        lambda: mutate.tiff(mutate.tiff_tags(24, 20, 8, 3, t322=(4, [2**28]), t323=(4, [16]), t259=(3, [8]))),
        "has tiles of 268435456x16 px in a picture of 24x20 px, up to 67108864 px are read",
    ),
} | {
    f"{name.decode()} of {depth} bits": (
        lambda name=name, head=head, depth=depth: texts(name, head, depth),
        "can't be read as an image .its texts or colour profile have more than 1048576 bytes, which are read at most",
    )
    for name, head in ((b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0"))
    for depth in (8, 16)
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_are_decoded_and_the_limit_is_said(name, tmp_path):
    make, message = BOMBS[name]
    path = tmp_path / "bomb.png"
    path.write_bytes(make())
    with Light(150), pytest.raises(ImageError, match=message):
        read_image(path)


def test_sizes_within_the_promise_are_opened(tmp_path):
    for width, height in ((13000, 13700), (50000, 1000), (65536, 10)):
        (tmp_path / "x.png").write_bytes(mutate.png(width, height))
        assert image_format(tmp_path / "x.png")[:2] == (height, width)


def test_strips_without_number_take_no_memory(tmp_path):
    strips = {"t273": (4, [8] * 10**6), "t279": (4, [2**31] * 10**6), "t278": (4, [1]), "t259": (3, [5])}
    (tmp_path / "x.tif").write_bytes(mutate.tiff(mutate.tiff_tags(24, 20, 8, 3, **strips)))
    with Light(200), pytest.raises(ImageError, match="can't be"):
        read_image(tmp_path / "x.tif")


def test_bits_of_a_pixel_are_no_bits_of_a_channel_and_a_sign_is_refused(tmp_path):
    (tmp_path / "x.bmp").write_bytes(mutate.bmp_of_16_bits())
    assert image_format(tmp_path / "x.bmp") == (6, 8, np.uint8) and read_image(tmp_path / "x.bmp").dtype == np.uint8
    (tmp_path / "x.tif").write_bytes(mutate.tiff_of_signed())
    with pytest.raises(ImageError, match="neither 8 nor 16 bits"):
        read_image(tmp_path / "x.tif")


def refused(content, tmp_path, message, read=None):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with Light(150), pytest.raises(UserError, match=message):
        (read or (lambda: checkpoint.load(path, "--net")))()


def test_checkpoints_that_claim_more_than_they_hold(tmp_path):
    state = mutate.small_nets()["ED"].state_dict()
    damaged = "--net: .*x.pt is not a PyTorch checkpoint, or a damaged one"
    zeros = mutate.saved({"a": torch.zeros(25 * 10**6)})  # 100 MB
    packed = mutate.repacked(zeros, zipfile.ZIP_DEFLATED)
    assert len(packed) < 200_000
    refused(packed, tmp_path, damaged)
    refused(mutate.repacked(mutate.saved(state), zipfile.ZIP_BZIP2), tmp_path, damaged)
    for numbers in (10**9, 2**40, 2**62):
        refused(mutate.legacy_bomb(numbers), tmp_path, damaged)
    for key, shape in (
        ("encoder.main.0.weight", (10**5, 3, 4, 4)),
        ("decoder.main.0.weight", (16, 10**9)),
        ("encoder.main.2.weight", (4000, 4000, 4, 4)),
    ):
        lying = mutate.saved(mutate.expanded(state, shape, key))
        refused(lying, tmp_path, "--netED", lambda: checkpoint.load_generator(tmp_path / "x.pt", "--netED"))
    many = state | {f"encoder.main.{20 + 2 * k}.weight": torch.zeros(1, 1, 1, 1) for k in range(8)}
    refused(mutate.saved(many), tmp_path, "of another size", lambda: checkpoint.load_generator(tmp_path / "x.pt", "-"))


def test_members_of_a_zip_that_lie_in_one_place(tmp_path):
    whole = mutate.saved({"a": torch.zeros(1000), "b": torch.ones(1000)})
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        for info in list(new.infolist()) * 3:  # the same places once more
            new.filelist.append(info)
    refused(out.getvalue(), tmp_path, "is not a PyTorch checkpoint, or a damaged one")


@pytest.mark.parametrize("name", mutate.code_pickles())
def test_code_in_checkpoints_is_never_run(name, tmp_path, capfd, seeds):
    content = mutate.code_pickles()[name]
    refused(content, tmp_path, "holds code or objects|damaged", lambda: checkpoint.load(tmp_path / "x.pt", "--net"))
    refused(content, tmp_path, "-", lambda: checkpoint.load_generator(tmp_path / "x.pt", "--netED"))
    shutil.copy(seeds.folder / "Aug_DerainNet_state_1.pt", tmp_path)
    (tmp_path / "Aug_DerainNet.json").write_bytes(content)  # as if it were a choice
    assert derainer.stored(tmp_path / "Aug_DerainNet_state_1.pt") is None
    (tmp_path / "train_state_last.pt").write_bytes(content)
    with pytest.raises(UserError, match="holds no whole training state"):
        train_syn_aug.main([*seeds.pairs_flags(), "--model_dir", str(tmp_path), "--resume", "-1", "--dry_run"])
    assert "ran" not in [line.strip() for line in capfd.readouterr().out.splitlines()]


def huge(file):
    file.create_dataset("meta", (2**36,), "u1", chunks=(2**20,))


def squeezed(file):
    file.create_dataset("meta", data=np.zeros(5 * 10**7, "u1"), compression="gzip", compression_opts=9)


@pytest.mark.parametrize("change", [huge, squeezed])
@pytest.mark.parametrize("place", ["x.h5", "x.h5.part"])
def test_packs_that_claim_more_than_they_hold(change, place, tmp_path, seeds):
    with h5py.File(tmp_path / place, "w") as file:
        change(file)
    assert (tmp_path / place).stat().st_size < 10**6
    make = [*seeds.pairs_flags(), "--out", str(tmp_path / "x.h5"), "--overwrite"]
    with Light(150):
        if place == "x.h5":
            with pytest.raises(UserError, match="x.h5: is no whole pack: meta is not of plain numbers"):
                pack.Pack(tmp_path / place)
        with pytest.raises(UserError, match="--overwrite: .* is no pack of ours; move it away yourself"):
            pack.main(make)


def test_an_interrupted_pack_without_its_index_is_not_gone_on_with(tmp_path, seeds):
    for part in ("index", "stamps", "sha256"):
        (tmp_path / "x.h5.part").write_bytes(mutate.rewritten(seeds.pack, lambda file, part=part: file.pop(part)))
        with pytest.raises(UserError, match="x.h5.part is of other pairs; --overwrite starts anew"):
            pack.main([*seeds.pairs_flags(), "--out", str(tmp_path / "x.h5")])


def test_endless_lines_and_texts_are_read_up_to_a_limit(tmp_path):
    (tmp_path / "real_world.txt").write_bytes(b"rain/8.png norain/8.png\n" + b"a " * 10**7 + b"\n" + b"x\n" * 10**6)
    with Light(300), pytest.raises(UserError, match="1000001 of 1000002 entries(.|\n)*line 2: more than 3 paths"):
        PairList(tmp_path)
    (tmp_path / "real_world.txt").write_bytes(b"a" * 10**7 + b" b.png")
    with pytest.raises(UserError, match=r"line 1: a{200}\.\.\. is longer than the path of a file can be"):
        PairList(tmp_path)
    with open(tmp_path / "manifest.csv", "wb") as file:
        file.truncate(2**30)
    with Light(150), pytest.raises(UserError, match="is no list of generated pairs"):
        Manifest(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_nothing_waits_for_a_named_pipe(tmp_path, seeds, capsys):
    pipes = {name: tmp_path / name for name in ("log.csv", "manifest.csv", "data", "x.json")}
    for path in pipes.values():
        os.mkfifo(path)
    show = ["--out", f"{tmp_path}/o", "--show", f"{seeds.pairs}/rain/8.png", "text", "--table", str(pipes["log.csv"])]
    flags = ["--use_gpu", "false", "--dry_run", "--model_dir", f"{tmp_path}/m", "--log_dir", f"{tmp_path}/l"]
    calls = {
        "log.csv can't be read": lambda: curves.main(["--log_dir", str(tmp_path), "--out", f"{tmp_path}/c.png"]),
        "--table: .*is no file": lambda: report.main(show),
        "manifest.csv: is in the way": lambda: Manifest(tmp_path),
        "--data_path: .*data is not a folder": lambda: train_syn_aug.main(
            ["--data_path", str(pipes["data"]), *flags, "--fake_ratio", "0"]
        ),
    }
    for message, call in calls.items():
        with pytest.raises(UserError, match=message):
            call()
    with pytest.raises(UserError, match="--log_dir: .* can't be written to .is no file"):
        Log(str(tmp_path), {}, 1, 1, False)
    assert derainer.stored(tmp_path / "x_state_1.pt") is None and "can't be understood" in capsys.readouterr().err
    with pytest.raises(OSError, match="is no file") as error:
        read_small(pipes["data"])
    assert error.value.errno == errno.EINVAL


# --- what a run goes on from -----------------------------------------------------------------------------------------


def state_with(state, place, value):
    """A train state with one thing in it replaced."""
    if not place:
        return value
    first, *rest = place
    return state | {first: state_with(state[first], rest, value)}


@pytest.mark.parametrize(
    "place, value, message",
    [
        (["vrgnet_state"], torch.ones(2), r"has format tensor\(\[1., 1.\]\), this program reads 1"),
        (["vrgnet_state"], "\x1b[31m", r"has format \x1b\[31m, this"),  # escaped when it is shown
        (["epoch"], -1, "holds no whole training state"),
        (["options", "niter"], "x", "holds no whole training state"),
        (["options", "batchSize"], -1, "holds no whole training state"),
        (["options", "patchSize"], 17, "holds no whole training state"),
        (["options", "lr"], float("inf"), "holds no whole training state"),
        (["options", "milestone"], [None], "holds no whole training state"),
        (["options", "log_dir"], 1, "holds no whole training state"),
        (["options", "recurrent_iter"], 10**9, "holds no whole training state"),
        (["optimizers", "Aug_DerainNet"], {}, "trains other parameters than this run did"),
        (["optimizers", "Aug_DerainNet", "state"], {0: 1}, "trains other parameters than this run did"),
        (["rng", "torch"], None, "train_state_last.pt is damaged; go on from bare weights, --resume N"),
        (["rng", "python"], [1], "train_state_last.pt is damaged; go on from bare weights, --resume N"),
        (["rng"], {}, "train_state_last.pt is damaged; go on from bare weights, --resume N"),
    ],
)
def test_train_states_with_something_odd_in_them(place, value, message, tmp_path, seeds):
    torch.save(state_with(seeds.state, place, value), tmp_path / "train_state_last.pt")
    words = ["--model_dir", tmp_path, "--log_dir", tmp_path / "l", "--resume", "-1", "--niter", "2"]
    with pytest.raises(UserError, match=message):
        train_syn_aug.main([*seeds.pairs_flags(), "--use_gpu", "false", *map(str, words)])


def test_whatever_flags_allow_may_be_stored():
    """A run whose flags were taken can go on: the check of stored options is no stricter than the flags."""
    for script in (name for name in fuzz.SCRIPTS if "train" in name):
        module = importlib.import_module(script)
        args = module.parse_args([])
        assert _are_values({key: value for key, value in vars(args).items() if key != "given"}, args), script
        for action in fuzz.flags_of(module):
            for text in ("0", "1", "0.5", "16", "7", "2147483647"):
                try:
                    value = action.type(text)
                except (TypeError, ValueError, argparse.ArgumentTypeError):
                    continue
                value = [value] if action.nargs == "+" else value
                stored = {action.dest: value}
                assert _are_values(stored, args), (script, stored, FRACTIONS, MAY_BE_ZERO)


# --- paths and names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["../../x.png", "/etc/x.png", "a/../../x.png", "x.png\0", "notes.txt"])
def test_a_manifest_names_nothing_outside_its_folders(file, tmp_path, seeds):
    shutil.copytree(seeds.folder / "made", tmp_path / "out")
    text = (tmp_path / "out" / "manifest.csv").read_text()
    (tmp_path / "out" / "manifest.csv").write_text(text.replace('"8.png"', f'"{file}"', 1))
    with pytest.raises(UserError, match=r"manifest.csv: .* is no pair of 8.png; mend it"):
        Manifest(tmp_path / "out")


def test_compose_deletes_nothing_outside_its_folders(tmp_path, seeds):
    shutil.copytree(seeds.folder / "composed", tmp_path / "out")
    (tmp_path / "thesis.png").write_bytes(b"x")
    entry = seeds.composed["pairs"][0] | {"file": "../../thesis.png"}
    listed = seeds.composed | {"pairs": [entry, *seeds.composed["pairs"][1:]]}
    (tmp_path / "out" / compose.NAME).write_text(json.dumps(listed))
    with pytest.raises(UserError, match="is not empty, and not all in it is of this command"):
        compose.main([*seeds.compose_flags(tmp_path / "out"), "--overwrite"])
    assert (tmp_path / "thesis.png").exists()


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "'=1", "''=1", "'x", "x=1", "", "'", "a'=b"])
def test_cells_are_no_formulas_and_come_back(text):
    assert not cell(text).startswith(("=", "+", "-", "@", "\t", "\r")) and text_of(cell(text)) == text
    assert cell(text) == text or text.lstrip("'").startswith(("=", "+", "-", "@", "\t", "\r"))


def test_formulas_in_names_stay_names(tmp_path, generator, quick, capsys):
    names = ["=1+1.png", "+2.png", "-3.png", "@x.png", "\tx.png", "'=1.png", "plain.png"]
    for kind in ("rain", "norain"):
        for number, name in enumerate(names):
            write_image(tmp_path / kind / name, photo(20, 24, number))
    flags = ["--pred", f"{tmp_path}/rain", "--gt", f"{tmp_path}/norain", "--csv", f"{tmp_path}/m.csv"]
    assert metrics.main(flags) == 0
    cells = [row[0] for row in csv.reader((tmp_path / "m.csv").read_text().splitlines())]
    assert not [text for text in cells if text.startswith(("=", "+", "-", "@", "\t"))]
    assert set(map(text_of, cells)) == {"image", "mean", *names}
    assert report.main(["--out", f"{tmp_path}/g", "--show", f"{tmp_path}/rain/@x.png", "x", "--table", flags[-1]]) == 0
    page = (tmp_path / "g" / "index.html").read_text()
    assert "<td>=1+1.png</td>" in page and "<td>&#39;=1.png</td>" in page
    words = ["--data_path", f"{tmp_path}/norain", "--save_path", f"{tmp_path}/out", "--netED", str(generator)]
    for made in ("7 pairs made", "0 pairs made"):  # read back, they are known
        assert generate_rain.main([*words, "--use_gpu", "false"]) == 0
        assert made in capsys.readouterr().out
    assert set(Manifest(tmp_path / "out").rows) == set(names)
    rows = list(csv.reader((tmp_path / "out" / "manifest.csv").read_text().splitlines()))
    assert not [text for row in rows for text in row[:2] if text.startswith(("=", "+", "-", "@", "\t"))]


def test_a_page_escapes_whatever_names_hold(tmp_path):
    name = '<img src=x onerror=alert(1)>&".png'
    write_image(tmp_path / name, photo(20, 24, 0))
    (tmp_path / "t.csv").write_text('image,"<b>"\n"<script>alert(1)</script>",1\n')
    words = ["--out", f"{tmp_path}/g", "--show", str(tmp_path / name), name, "--title", "<i>", "--table"]
    assert report.main([*words, f"{tmp_path}/t.csv"]) == 0
    page = (tmp_path / "g" / "index.html").read_text()
    assert not any(text in page for text in ("<img src=x", "<script", "<b>", "<i>")) and "&lt;script&gt;" in page


def test_what_is_shown_on_a_terminal_does_not_control_it(tmp_path, capsys):
    evil = "\x1b]0;owned\x07\u202e\r\n\x85"
    for kind in ("rain", "norain"):
        write_image(tmp_path / kind / f"a{evil}.png", photo(20, 24, 0))
    (tmp_path / "rain" / f"b{evil}.png").write_bytes(b"x")
    (tmp_path / "real_world.txt").write_text("../\x1b[31m.png c.png\n")
    torch.save({f"k{evil}": torch.zeros(1)}, tmp_path / f"n{evil}.pt")
    calls = [
        lambda: read_image(tmp_path / "rain" / f"b{evil}.png"),
        lambda: metrics.main(["--pred", f"{tmp_path}/rain", "--gt", f"{tmp_path}/norain"]),
        lambda: PairList(tmp_path),
        lambda: test_syn_aug.main(["--model_dir", str(tmp_path), "--data_path", f"{tmp_path}/rain"]),
        lambda: test_syn_aug.main(["--model_dir", f"{tmp_path}/{evil}.pt", "--data_path", f"{tmp_path}/rain"]),
    ]
    for call in calls:
        assert cli.run(call) == 2
        said = capsys.readouterr()
        assert fuzz.is_plain(said.err) and fuzz.is_plain(said.out) and "error: " in said.err
    with pytest.raises(SystemExit):
        test_syn_aug.parse_args([f"--x{evil}"])
    assert fuzz.is_plain(capsys.readouterr().err)


def test_dollars_and_kinds_of_values_in_a_log(tmp_path):
    (tmp_path / "$x^{$").mkdir()
    log = tmp_path / "$x^{$" / "log.csv"
    log.write_text("epoch,step,seconds,$\\frac{$\n1,1,1,2\n")
    assert curves.main(["--log_dir", str(log.parent), str(log.parent), "--out", f"{tmp_path}/c.png"]) == 0
    for heads in (0, 100):
        names = ",".join(["epoch,step,seconds", *[f"v{k}" for k in range(heads)]])
        log.write_text(f"{names}\n{'1,' * (2 + heads)}1")
        with pytest.raises(UserError, match=f"--log_dir: {heads} kinds of values to draw, 1 to 60 make a picture"):
            curves.main(["--log_dir", str(log.parent), "--out", f"{tmp_path}/c.png"])


@pytest.mark.parametrize(
    "flag, text, expected",
    [
        ("--num", "2147483648", "expected a whole number from 1 to 10000, got '2147483648'"),
        ("--batchSize", "9" * 5000, r"expected a whole number from 1 on, got '9{50,60}"),
        ("--batchSize", "2147483648", "expected a whole number up to 2147483647, got '2147483648'"),
        ("--patchSize", "1048576", "expected a power of two from 16 on (16, 32, 64 ... 4096), got '1048576'"),
        ("--recurrent_iter", "1000000", "expected a whole number from 1 to 1000, got '1000000'"),
        ("--nef", "1000000", "expected a whole number from 1 to 65536, got '1000000'"),
    ],
)
def test_absurd_numbers_are_refused_with_their_limit(flag, text, expected, capsys):
    module = generate_rain if flag == "--num" else train_syn_aug
    with pytest.raises(SystemExit):
        module.parse_args(["--data_path", "x", flag, text])
    message = capsys.readouterr().err
    assert (expected in message or "9{" in expected) and len(message.partition("error:")[2]) < 300


# --- a small fuzz run ------------------------------------------------------------------------------------------------


def test_a_small_fuzz_run_finds_nothing_and_stays_in_its_folder(tmp_path, seeds):
    before = {path: list(path.rglob("*")) for path in ROOT.glob("for_*")}
    with fuzz.stubs():
        for number in range(350):
            if fuzz.kind_of(number) == "names" and number > 100:  # slow
                continue
            signal.alarm(20)
            try:
                fuzz.run_case(3, number, seeds, tmp_path / "case")
            except fuzz.Finding as finding:
                pytest.fail(f"python -m tests.fuzz --seed 3 --only {number}: {finding}")
    caches = "__pycache__"
    for folder, there in before.items():
        assert [path for path in folder.rglob("*") if path not in there and caches not in path.parts] == []
