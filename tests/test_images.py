"""Images: formats, depths, orientation, damage, whole files."""

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from common.data import images
from common.data.images import ImageError, image_format, image_size, read_image, write_image
from common.errors import UserError
from tests.conftest import photo

PHOTO = photo(40, 50, 0)


def test_natural_order(tmp_path):  # T12
    hidden = ".hidden.png", ".thumbnails/1.png"
    for name in ("img10.png", "img2.png", "b/1.png", "img2b.jpg", "notes.txt", "IMG3.PNG", *hidden):
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).touch()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "2.png").touch()
    (tmp_path / "here" / "c").symlink_to(tmp_path / "linked")
    names, others = images.list_images(tmp_path / "here")
    expected = ["IMG3.PNG", "b/1.png", "c/2.png", "img2.png", "img2b.jpg", "img10.png"]
    assert [str(n) for n in names] == expected and others == 2  # .hidden.png, notes.txt


def test_a_real_folder_is_read_once(tmp_path, capsys):
    """Links to parents, to folders that are read already, and back and forth between two folders."""
    for name in ("data/z/1.png", "data/2.png", "else/3.png", "else/.git/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    links = {"data/z/up": "data", "data/top": ".", "data/a": "data/z", "data/b": "else", "else/c": "data/z"}
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    assert [str(n) for n in images.list_images(tmp_path / "data")[0]] == ["2.png", "b/3.png", "z/1.png"]
    images.list_images(tmp_path / "data")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: 4 links below {tmp_path / 'data'} are left out") and "z/up" in line


def test_a_folder_that_can_not_be_read_is_an_error(tmp_path, monkeypatch):  # permissions would not stop root
    for name in ("here/shut", "here/.hidden"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "here/1.png").touch()
    real = os.scandir

    def scandir(path):
        if Path(path).name in shut:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    shut = {".hidden"}
    assert images.list_images(tmp_path / "here") == ([Path("1.png")], 0)
    for shut in ({"shut"}, {"here"}):
        with pytest.raises(UserError, match=rf"{shut.copy().pop()}: the folder can't be read \(Permission denied\); "):
            images.list_images(tmp_path / "here")


@pytest.mark.parametrize("inside", ["folder.png", "file/x.png", "file/deeper/x.png"])
def test_a_folder_in_place_of_a_file_is_a_mistake_of_the_flags(tmp_path, inside):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"can't be written .*; name another file") as error:
        write_image(tmp_path / inside, PHOTO)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    "mode, name", [("L", "g.png"), ("RGBA", "a.png"), ("P", "p.png"), ("LA", "la.png"), ("1", "b.png")]
)
def test_other_modes_become_rgb(tmp_path, mode, name):
    original = Image.fromarray(PHOTO).convert(mode)
    original.save(tmp_path / name)
    pixels = read_image(tmp_path / name)
    assert pixels.shape == (40, 50, 3) and pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(original.convert("RGB")))


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_kept(tmp_path, ending, channels):
    deep = PHOTO[..., :channels].astype(np.uint16) * 256 + 7
    cv2.imwrite(str(tmp_path / f"d.{ending}"), deep[..., ::-1] if channels == 3 else deep[..., 0])
    pixels = read_image(tmp_path / f"d.{ending}")
    assert pixels.dtype == np.uint16 and np.array_equal(pixels, np.broadcast_to(deep, PHOTO.shape))
    assert images.to_float(pixels).max() <= 1
    assert images.to_float(pixels)[3, 4, 0] == pytest.approx(deep[3, 4, 0] / 65535)


UPRIGHT = {  # EXIF orientation -> the upright picture
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: np.rot90(a, 2),
    4: lambda a: a[::-1],
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a[:, ::-1], -1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation, ending", [(6, "png"), *((k, "jpg") for k in UPRIGHT), (6, "webp"), (6, "tif")])
def test_exif_orientation(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"x.{ending}"
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(ending, {})
    Image.fromarray(PHOTO).save(path, exif=exif, **options)
    pixels, upright = read_image(path), UPRIGHT[orientation](PHOTO)
    assert image_size(path) == pixels.shape[:2] == upright.shape[:2]
    assert np.abs(pixels.astype(int) - upright).max() <= (4 if ending == "jpg" else 0)


def test_orientation_of_16_bit_pngs(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    deep = PHOTO.astype(np.uint16) * 256 + 7
    data, part = cv2.imencode(".png", deep[..., ::-1])[1].tobytes(), b"eXIf" + exif.tobytes()[6:]
    part = struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
    (tmp_path / "x.png").write_bytes(data[:33] + part + data[33:])  # behind the header
    assert np.array_equal(read_image(tmp_path / "x.png"), UPRIGHT[6](deep))
    assert image_size(tmp_path / "x.png") == UPRIGHT[6](PHOTO).shape[:2]


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "tif", "16.png", "16.tif"])
def test_half_a_file_is_an_error(tmp_path, ending):  # T9
    path = tmp_path / f"x.{ending}"
    pixels = np.random.RandomState(0).randint(0, 255, (60, 70, 3)).astype(np.uint8)
    cv2.imwrite(str(path), pixels.astype(np.uint16) * 257) if "16" in ending else write_image(path, pixels)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=rf"x.{ending}: can't be read as an image.*replace or remove the file"):
        read_image(path)


def test_what_is_no_image(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.jpg").write_text("")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ImageError, match="text.png: can't be read as an image .*; replace or remove the file"):
        read_image(tmp_path / "text.png")
    with pytest.raises(ImageError, match=r"empty.jpg"):
        image_size(tmp_path / "empty.jpg")
    with pytest.raises(ImageError, match="neither 8 nor 16 bits"):
        read_image(tmp_path / "float.tif")
    with pytest.raises(ImageError, match="nothing.png: no such file"):
        read_image(tmp_path / "nothing.png")


@pytest.mark.parametrize("ending", ["png", "PNG", "webp", "bmp", "tif", "jpg"])
def test_write_and_read(tmp_path, ending):
    path = tmp_path / "new" / f"x.{ending}"
    write_image(path, PHOTO)
    difference = np.abs(read_image(path).astype(int) - PHOTO).max()
    assert difference <= (6 if ending == "jpg" else 0)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    if ending == "jpg":
        with Image.open(path) as image:
            assert image.layer[0][1:3] == image.layer[1][1:3] == (1, 1)  # 4:4:4
            assert max(image.quantization[0]) == 12  # quality 95


def test_rounding():
    values = np.array([-1, 0, 0.9999 / 255, 0.5, 1, 2], np.float32)
    assert images.to_uint8(values).tolist() == [0, 0, 0, 127, 255, 255]
    assert images.to_uint8(values, "nearest").tolist() == [0, 0, 1, 128, 255, 255]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_an_orientation_after_the_pixels_does_not_count(tmp_path, kind):
    """The header does not tell it; size and pixels must agree."""
    path = tmp_path / "late.png"
    data = cv2.imencode(".png", np.arange(20 * 30, dtype=kind).reshape(20, 30))[1].tobytes()
    exif = Image.Exif()
    exif[274] = 6
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = len(content).to_bytes(4, "big") + b"eXIf" + content + zlib.crc32(b"eXIf" + content).to_bytes(4, "big")
    path.write_bytes(data[:-12] + chunk + data[-12:])
    assert read_image(path).shape[:2] == image_format(path)[:2] == (20, 30)
