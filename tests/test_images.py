"""Images: formats, depths, orientation, damage, whole files."""

import os
import struct
import zlib
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from common import terminal
from common.data import images
from common.data.images import ImageError, image_format, read_image, write_image
from common.errors import UserError
from tests.conftest import SRGB, made, photo

PHOTO = photo(40, 50, 0)


@pytest.fixture
def warnings(monkeypatch, capsys):
    """A function that returns the lines on stderr, as of a fresh command."""
    monkeypatch.setattr(terminal, "_warned", set())
    return lambda: capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("name", ["8.png", "8.webp", "8.tif", "16.png", "16.tif", "grey.png", "palette.png"])
def test_transparent_parts_become_white_or_black(tmp_path, name, warnings):
    """The colours under them, here a photo, must not become the picture."""
    path, alpha = tmp_path / name, np.full((40, 50, 1), 255, np.uint8)
    alpha[:20], alpha[20:30] = 0, 51
    if name.startswith("16"):
        cv2.imwrite(str(path), np.concatenate((PHOTO[..., ::-1], alpha), 2).astype(np.uint16) * 257)
    elif name == "palette.png":
        Image.fromarray(alpha[..., 0] // 51).convert("P").save(path, transparency=bytes([0, 51, *[255] * 254]))
    else:
        image = Image.fromarray(np.concatenate((PHOTO, alpha), 2))
        image.convert("LA" if "grey" in name else "RGBA").save(path, **{"lossless": True} if "webp" in name else {})
    seen = {"grey.png": np.asarray(Image.fromarray(PHOTO).convert("L"))[..., None], "palette.png": alpha // 51}
    for ground in (images.WHITE, images.BLACK):
        pixels = images.to_eight_bits(read_image(path, ground)).astype(int)
        colours = np.broadcast_to(seen.get(name, PHOTO), PHOTO.shape)
        assert (pixels[:20] == ground).all() and np.array_equal(pixels[30:], colours[30:])
        assert np.abs(pixels[20:30] - (0.2 * colours[20:30] + 0.8 * ground)).max() <= 0.5
        read_image(path, ground)
    white, black = warnings()
    assert "transparent parts become white" in white and "transparent parts become black" in black and name in white


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.webp"])
def test_only_the_first_of_several_pictures_is_read(tmp_path, name, warnings):
    first, second = Image.fromarray(PHOTO), Image.fromarray(PHOTO[::-1].copy())
    first.save(tmp_path / name, save_all=True, append_images=[second], **{"lossless": True} if "webp" in name else {})
    assert np.array_equal(read_image(tmp_path / name), PHOTO)
    (line,) = warnings()
    assert f"{name} holds several pictures; only the first is read" in line


def test_colour_profiles(tmp_path, profile, warnings):
    """Colours become those of sRGB, or stay together with the profile, which here exchanges red and green."""
    exchanged = PHOTO[..., [1, 0, 2]]
    for name in ("a.png", "a.jpg", "a.webp", "a.tif"):
        write_image(tmp_path / name, PHOTO, profile)
        stored, kept = images.read_stored(tmp_path / name)
        error = np.abs(stored.astype(int) - PHOTO).max()
        assert kept == profile and error <= (6 if name == "a.jpg" else 0)
        assert np.abs(read_image(tmp_path / name).astype(int) - exchanged).max() <= error + 1
    deep = images.in_srgb(images.widened(PHOTO), profile)  # Pillow writes no such image
    assert deep.dtype == np.uint16 and np.abs(deep.astype(int) - 257 * exchanged.astype(int)).max() <= 257
    assert not warnings()


def test_a_profile_of_srgb_changes_nothing_and_one_that_does_not_fit_is_named(tmp_path, warnings):
    Image.fromarray(PHOTO).convert("RGBA").save(tmp_path / "a.png", icc_profile=SRGB)  # nor does such an alpha channel
    Image.fromarray(PHOTO[..., 0]).save(tmp_path / "grey.jpg", icc_profile=SRGB, quality=100)  # as some programs do
    assert read_image(tmp_path / "grey.jpg").shape == PHOTO.shape
    assert np.array_equal(read_image(tmp_path / "a.png"), PHOTO) and not warnings()
    Image.fromarray(PHOTO).save(tmp_path / "b.png", icc_profile=b"no profile")
    assert np.array_equal(read_image(tmp_path / "b.png"), PHOTO)
    assert "b.png: its colour profile can't be used" in "".join(warnings())


def test_grey_images_with_a_profile_of_grey_become_srgb(tmp_path):
    """An RGB image can't keep such a profile. It has one curve, here a straight line above the darkest levels."""
    grey = SRGB.replace(b"RGB ", b"GRAY").replace(b"rTRC", b"kTRC").replace(b"\0\2\x66\x66", b"\0\1\0\0")
    Image.fromarray(PHOTO[..., 0]).save(tmp_path / "a.png", icc_profile=grey)
    pixels, profile = images.read_stored(tmp_path / "a.png")
    linear = (PHOTO[..., :1] / 255 + 0.055) / 1.055
    expected = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)
    assert profile is None and np.abs(pixels - expected)[PHOTO[..., 0] > 20].max() < 1.5
    assert np.array_equal(read_image(tmp_path / "a.png"), pixels)


def test_natural_order(tmp_path):  # T12
    hidden = ".hidden.png", ".thumbnails/1.png", "@eaDir/img2.png/SYNOPHOTO_THUMB_M.jpg", "$Recycle.Bin/$R1.png"
    here = made(tmp_path / "here", "img10.png", "img2.png", "b/1.png", "img2b.jpg", "notes.txt", "IMG3.PNG", *hidden)
    (here / "c").symlink_to(made(tmp_path / "linked", "2.png"))
    expected = ["IMG3.PNG", "b/1.png", "c/2.png", "img2.png", "img2b.jpg", "img10.png"]
    assert [str(name) for name in images.list_images(here)] == expected


def test_images_of_formats_that_are_not_read_are_counted(tmp_path, warnings):
    made(tmp_path, "1.HEIC", "2.heic", "3.gif", "4.txt", "5.jfif")
    assert images.list_images(tmp_path) == [Path("5.jfif")]
    (line,) = warnings()
    assert line.startswith(f"warning: 3 images below {tmp_path} are left out (.gif, .heic); convert them")


def test_a_real_folder_is_read_once(tmp_path, capsys):
    """Links to parents, to folders that are read already, and back and forth between two folders."""
    data = made(tmp_path, "data/z/1.png", "data/2.png", "else/3.png", "else/.git/4.png") / "data"
    made(tmp_path, "data/k/5.png")  # its link to z comes before z by name, and z keeps its name
    links = {"data/z/up": "data", "data/top": ".", "data/a": "data/z", "data/b": "else", "data/k/c": "data/z"}
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    for _ in range(2):  # one warning
        assert [str(n) for n in images.list_images(data)] == ["2.png", "b/3.png", "k/5.png", "z/1.png"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: 4 links below {data} are left out") and "z/up" in line


def test_a_folder_that_can_not_be_read_is_an_error(tmp_path, monkeypatch):  # permissions would not stop root
    made(tmp_path, "here/shut/1.png", "here/.hidden/1.png", "here/1.png")
    real = os.scandir

    def scandir(path):
        if Path(path).name in shut:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    shut = {".hidden"}
    assert len(images.list_images(tmp_path / "here")) == 2
    for shut in ({"shut"}, {"here"}):
        with pytest.raises(UserError, match=rf"{shut.copy().pop()}: the folder can't be read \(Permission denied\); "):
            images.list_images(tmp_path / "here")


def test_a_folder_in_place_of_a_file_is_one_message(tmp_path):
    made(tmp_path, "folder.png/x", "file")
    for inside in ("folder.png", "file/deeper/x.png"):
        with pytest.raises(UserError, match=rf"{inside}: can't be written .*; check the path"):
            write_image(tmp_path / inside, PHOTO)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1"])
def test_other_modes_become_rgb(tmp_path, mode):
    original = Image.fromarray(PHOTO).convert(mode)
    original.save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png")
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, np.asarray(original.convert("RGB")))


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_kept(tmp_path, ending, channels):
    deep = PHOTO[..., :channels].astype(np.uint16) * 256 + 7
    cv2.imwrite(str(tmp_path / f"d.{ending}"), deep[..., ::-1] if channels == 3 else deep[..., 0])
    pixels = read_image(tmp_path / f"d.{ending}")
    assert pixels.dtype == np.uint16 and np.array_equal(pixels, np.broadcast_to(deep, PHOTO.shape))
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


@pytest.mark.parametrize("orientation, ending", [*((k, "jpg") for k in UPRIGHT), (6, "webp"), (6, "tif")])
def test_exif_orientation(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"x.{ending}"
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(ending, {})
    Image.fromarray(PHOTO).save(path, exif=exif, **options)
    pixels, upright = read_image(path), UPRIGHT[orientation](PHOTO)
    assert image_format(path)[:2] == pixels.shape[:2] == upright.shape[:2]
    assert np.abs(pixels.astype(int) - upright).max() <= (4 if ending == "jpg" else 0)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_the_orientation_of_a_png_counts_in_its_header_alone(tmp_path, kind):
    exif = Image.Exif()
    exif[274] = 6
    image, part = PHOTO.astype(kind), b"eXIf" + exif.tobytes()[6:]
    data = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    part = struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
    for place, upright in ((33, UPRIGHT[6](image)), (len(data) - 12, image)):
        (tmp_path / "x.png").write_bytes(data[:place] + part + data[place:])
        assert np.array_equal(read_image(tmp_path / "x.png"), upright)
        assert image_format(tmp_path / "x.png") == (*upright.shape[:2], kind)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "tif", "16.png", "16.tif"])
def test_half_a_file_is_an_error(tmp_path, ending):  # T9
    path = tmp_path / f"x.{ending}"
    pixels = np.random.RandomState(0).randint(0, 255, (60, 70, 3)).astype(np.uint8)
    cv2.imwrite(str(path), pixels.astype(np.uint16) * 257) if "16" in ending else write_image(path, pixels)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=rf"x.{ending}: can't be read as an image.*replace or remove the file"):
        read_image(path)


def tiff(path, pixels, bits, **tags):
    """Write a TIFF by hand: (H, W, C) pixels of 16 bits, or packed ones (H, bytes), and what its tags say."""
    height, channels = len(pixels), pixels.shape[2] if pixels.ndim == 3 else 1
    width, data = pixels[0].nbytes * 8 // bits // channels, pixels.tobytes()
    values = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: channels, 278: height, 279: len(data)}
    values |= {int(tag[1:]): value for tag, value in tags.items()}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(values.items()))
    path.write_bytes(
        struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(values)) + entries + bytes(4)
    )


def test_deep_tiffs_that_would_be_read_wrongly_are_refused(tmp_path):
    deep = PHOTO[..., :1].astype(np.uint16) * 257
    tiff(tmp_path / "good.tif", deep, 16)
    assert np.array_equal(read_image(tmp_path / "good.tif"), deep.repeat(3, 2))
    tiff(tmp_path / "white.tif", 65535 - deep, 16, t262=0)  # 0 is white
    tiff(tmp_path / "planes.tif", deep, 16, t284=2)  # one plane after the other
    tiff(tmp_path / "12.tif", PHOTO[:, :, 0], 12)
    tiff(tmp_path / "times_alpha.tif", np.concatenate((deep, deep, deep, deep), 2), 16, t262=2, t338=1)
    colours = PHOTO.astype(np.uint16).transpose(2, 0, 1) * 257
    tifffile.imwrite(tmp_path / "colour_planes.tif", colours, photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "signed.tif", deep[..., 0].astype(np.int16))
    for name in ("white.tif", "planes.tif", "12.tif", "times_alpha.tif", "colour_planes.tif", "signed.tif"):
        with pytest.raises(ImageError, match=f"{name}: can't be read as an image .* save it as PNG"):
            read_image(tmp_path / name)


def test_the_largest_photos_of_phones_are_read(tmp_path):
    """200 megapixels, which Pillow takes for an attack; here without the pixels."""
    data = bytearray(cv2.imencode(".png", PHOTO)[1].tobytes())
    data[16:24] = struct.pack(">II", 16320, 12240)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    assert image_format(tmp_path / "a.png")[:2] == (12240, 16320)


def test_what_is_no_image(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    for name, told in (("text", "can't be read as an image .*; replace"), ("gone", "no such file")):
        for read in (read_image, image_format):
            with pytest.raises(ImageError, match=f"{name}.png: {told}"):
                read(tmp_path / f"{name}.png")
    with pytest.raises(ImageError, match="neither 8 nor 16 bits"):
        read_image(tmp_path / "float.tif")


@pytest.mark.parametrize("read", [read_image, image_format])
def test_an_image_that_is_too_large_for_the_memory_is_not_a_bad_one(tmp_path, monkeypatch, read):
    write_image(tmp_path / "a.png", PHOTO)
    monkeypatch.setattr(images, "_format", mock.Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        read(tmp_path / "a.png")


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
