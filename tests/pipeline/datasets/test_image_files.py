"""Files of image sets: nothing is dropped, doubled or decoded otherwise than it looks, without a line about it."""

import io
import logging
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from logitstore.pipeline.datasets import image_files, image_folder
from logitstore.storage.errors import BadDataError, ConfigError


def png(value: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(stream, kind)
    return stream.getvalue()


def write(root: Path, *names: str, content: bytes | None = None) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(number) if content is None else content)
    return root


def save(path: Path, image: Image.Image, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Warnings are logged once a process; each test has a process of its own in this respect."""
    monkeypatch.setattr(image_files, "_said", set())
    caplog.set_level(logging.INFO, logger="logitstore")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


THREE = ("ant/0.png", "bee/0.png", "cow/0.png")


# Links


@pytest.mark.parametrize(
    ("links", "names"),
    [
        ({"ant/all": ".."}, ["ant/all"]),
        ({"latest": "."}, ["latest"]),
        ({"ant/up": "..", "bee/up": "..", "cow/up": "../ant"}, ["ant/up", "bee/up", "cow/up"]),
        ({"dog": "cow"}, ["dog"]),
    ],
    ids=["loop", "self", "several loops", "class twice"],
)
def test_each_folder_is_read_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, links: dict[str, str], names: list[str]
) -> None:
    root = write(tmp_path / "set", *THREE)
    for name, target in links.items():
        (root / name).symlink_to(target)
    dataset = image_folder(root)
    assert (dataset.ids, dataset.class_names) == (THREE, ("ant", "bee", "cow"))
    shown = ", ".join(map(repr, names))
    assert warnings_of(caplog) == [
        f"{root}: links to folders that are in the set already are not followed ({len(names)}): {shown}"
    ]


def test_links_that_lead_out_are_followed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Sets of links to class folders are usual; a link to a folder above the root is read without the root itself."""
    write(tmp_path / "elsewhere", "x/0.png", "y/0.png")
    root = tmp_path / "set"
    root.mkdir()
    (root / "one").symlink_to("../elsewhere/x")
    (root / "two").symlink_to("../elsewhere/y")
    assert image_folder(root).class_names == ("one", "two")
    assert warnings_of(caplog) == []
    assert any("2 links lead to folders elsewhere: 'one', 'two'" in text for text in caplog.messages)
    (root / "above").symlink_to("..")
    dataset = image_folder(root)
    assert len(dataset) == 2 and len(set(dataset.class_names)) == 2
    assert "links to folders that are in the set already" in warnings_of(caplog)[0]


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "set", *THREE)
    (root / "notes.txt").symlink_to("gone.txt")
    assert len(image_folder(root)) == 3
    for name, target in (("ant/1.png", "gone.png"), ("dog", "gone"), ("ant/2.png", "2.png")):
        (root / name).symlink_to(target)
        with pytest.raises(BadDataError, match=rf"found 1 that lead nowhere: '{name}'; restore the files"):
            image_folder(root)
        (root / name).unlink()


def test_links_to_images_of_the_set_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(tmp_path / "set", *THREE)
    (tmp_path / "other.png").write_bytes(png(9))
    (root / "ant/1.png").symlink_to("../../other.png")
    image_folder(root)
    assert warnings_of(caplog) == []
    (root / "ant/latest.png").symlink_to("0.png")
    assert len(image_folder(root)) == 5
    assert warnings_of(caplog) == [
        f"{root}: links to images of the set are read as examples of their own (1): 'ant/latest.png'"
    ]


# Files that are left out


def test_other_suffixes_of_known_formats_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture = Image.fromarray(np.full((8, 8), 7, np.uint8))
    kinds = ["jfif", "jpe", "JPG", "apng", "avif", "jp2", "tga", "pbm", "webp"]
    for kind in kinds:
        save(tmp_path / "set" / kind / f"0.{kind}", picture)
    dataset = image_folder(tmp_path / "set")
    assert sorted(dataset.class_names) == sorted(kinds)
    assert all(
        abs(int(dataset[row][0].mean()) - 7) <= 2
        for row, kind in enumerate(dataset.class_names)
        if kind != "pbm"
    )
    assert warnings_of(caplog) == []


def test_files_and_folders_that_are_left_out_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write(
        tmp_path / "set", *THREE, "dog/0.heic", "dog/1.HEIC", "elk/x.JPEG.1", "fox/noname", "ant/readme.txt"
    )
    (root / "gnu").mkdir()
    write(root, "ant/.0.png", ".hid/0.png", "ant/._0.png", "__MACOSX/0.png", ".git/config", ".DS_Store")
    assert image_folder(root).class_names == ("ant", "bee", "cow")
    assert warnings_of(caplog) == [
        f"{root}: 4 of 8 files are left out, as no image format is read by their suffix: .heic 2, no suffix 1, .1 1",
        f"{root}: folders without an image are no classes (4): 'dog', 'elk', 'fox', 'gnu'",
        f"{root}: hidden files or folders of images are left out (2): '.hid', 'ant/.0.png'",
    ]
    image_folder(root)
    assert len(warnings_of(caplog)) == 3, "once a process"


def test_a_set_as_it_should_be_is_read_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Negative control of all warnings here."""
    write(tmp_path / "set", *THREE, "labels.csv", "ant/.DS_Store", "ant/._0.png")
    image_folder(tmp_path / "set")
    assert warnings_of(caplog) == []


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, listed = write(tmp_path / "set", *THREE), os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "bee":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(image_files.os, "scandir", scandir)
    with pytest.raises(BadDataError) as caught:
        image_folder(root)
    assert caught.value.where == str(root / "bee")
    assert caught.value.expected == "a folder that can be listed"


def test_a_pipe_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(tmp_path / "set", *THREE)
    os.mkfifo(root / "ant/1.png")
    assert len(image_folder(root)) == 3
    assert warnings_of(caplog) == [f"{root}: pipes, sockets or devices are left out (1): 'ant/1.png'"]


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MAX_BYTES", 1000)
    root = write(tmp_path / "set", *THREE)
    (root / "bee/0.png").write_bytes(b"\0" * 2000)
    with pytest.raises(BadDataError, match="more than 1,000 bytes"):
        image_folder(root)[1]
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("ant/0.png", b"\0" * 2000)
    with pytest.raises(BadDataError, match=r"an image of 1,000 bytes at most, found 2,000 bytes"):
        image_folder(tmp_path / "set.zip")


# Names


def test_class_names_of_two_unicode_forms_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write(tmp_path / "set", "caf\u00e9/0.png", "tea/0.png")
    assert len(image_folder(root)) == 2
    write(root, "cafe\u0301/0.png")
    with pytest.raises(BadDataError) as caught:
        image_folder(root)
    assert caught.value.found == "'cafe\\u0301' and 'caf\\xe9'"
    assert warnings_of(caplog) == []
    image_folder(write(tmp_path / "cases", "Tea/0.png", "tea/0.png"))
    assert warnings_of(caplog) == [
        f"{tmp_path / 'cases'}: two classes differ in case or blanks alone: 'Tea' and 'tea'"
    ]


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "set", *THREE)
    (root / os.fsdecode(b"caf\xe9")).mkdir()
    write(root, os.fsdecode(b"caf\xe9/0.png"))
    with pytest.raises(BadDataError, match=r"expected file names in UTF-8, found 'caf\\udce9/0.png'"):
        image_folder(root)


def zipped(path: Path, *names: str, utf8: bool = True) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            info = zipfile.ZipInfo()
            info.filename = name
            archive.writestr(info, png(number))
    return path


def test_a_zip_of_windows_is_read_as_folders(tmp_path: Path) -> None:
    mixed = zipped(tmp_path / "set.zip", "set\\ant\\0.png", "set\\ant/1.png", "set/bee/0.png", "set\\empty\\")
    dataset = image_folder(mixed)
    assert dataset.ids == ("set/ant/0.png", "set/ant/1.png", "set/bee/0.png")
    assert dataset.class_names == ("ant", "bee")
    assert [int(dataset[row][0].max()) for row in range(3)] == [0, 1, 2]
    plain = zipped(tmp_path / "plain.zip", "set/ant/0.png", "set/ant/1.png", "set/bee/0.png")
    assert image_folder(plain).fingerprint() == dataset.fingerprint()


@pytest.mark.parametrize(
    "name", ["C:\\set\\ant\\0.png", "\\\\host\\ant\\0.png", "..\\ant\\0.png", "a/../../0.png", "ant\\1.png"]
)
def test_names_of_a_zip_that_are_no_relative_paths_are_refused(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "set.zip", "ant/1.png", name)
    with pytest.raises(BadDataError, match="expected distinct relative file names") as caught:
        image_folder(path)
    assert caught.value.where == str(path)


def test_names_in_code_page_437_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = zipped(tmp_path / "set.zip", "b\u00e4r/0.png", "x/0.png")
    assert image_folder(path).class_names == ("b\u00e4r", "x")
    assert warnings_of(caplog) == []
    content = path.read_bytes()
    unmarked = tmp_path / "old.zip"
    unmarked.write_bytes(content.replace(b"b\xc3\xa4r", b"b\x84_r"))
    archive = bytearray(unmarked.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = archive.find(mark)
        while place >= 0:
            archive[place + offset + 1] &= ~0x08
            place = archive.find(mark, place + 4)
    unmarked.write_bytes(archive)
    assert image_folder(unmarked).class_names == ("b\u00e4_r", "x")
    assert warnings_of(caplog) == [
        f"{unmarked}: names are not marked as UTF-8 and read in code page 437; if they look wrong, pack the folder again "
        + "(1): 'b\u00e4_r/0.png'"
    ]


# Pixels


def see_through(kind: str) -> Image.Image:
    """Return a white square on a transparent ground, in a mode of Pillow's; the hidden colour is black."""
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[2:6, 2:6] = 255
    image = Image.fromarray(rgba)
    if kind == "P":
        palette = Image.fromarray(rgba[..., 0] // 255, "P")
        palette.putpalette([0, 0, 0, 255, 255, 255])
        return palette
    return image.convert(kind)


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("RGBA", "0.png", {}),
        ("LA", "0.png", {}),
        ("P", "0.png", {"transparency": 0}),
        ("P", "0.gif", {"transparency": 0}),
        ("RGBA", "0.webp", {"lossless": True}),
        ("RGBA", "0.tiff", {}),
        ("L", "0.png", {"transparency": 0}),
        ("1", "0.png", {"transparency": 0}),
        ("RGB", "0.png", {"transparency": (0, 0, 0)}),
    ],
    ids=["RGBA", "LA", "tRNS", "gif", "webp", "tiff", "grey", "bits", "colour"],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_transparent_pixels_need_a_background(
    tmp_path: Path, kind: str, name: str, options: dict[str, object], mode: str
) -> None:
    save(tmp_path / "set/a" / name, see_through(kind), **options)
    with pytest.raises(BadDataError) as caught:
        image_folder(tmp_path / "set", mode=mode)[0]  # type: ignore[arg-type]
    assert caught.value.found.startswith("48 of 64 that are (mode ")
    assert "background = 255" in caught.value.remedy
    for background, hidden in ((255, 255), (9, 9), ((9, 9, 9), 9)):
        dataset = image_folder(tmp_path / "set", mode=mode, background=background)  # type: ignore[arg-type]
        pixels = dataset[0][0].reshape(-1, 8, 8)
        assert set(pixels[:, 0, 0].tolist()) == {hidden}
        assert set(pixels[:, 3, 3].tolist()) == {255}


@pytest.mark.parametrize("alpha", [254, 128, 1])
def test_a_pixel_that_is_transparent_in_part_needs_a_background_as_well(tmp_path: Path, alpha: int) -> None:
    """Its colour without a ground is none that anybody has seen: shadows and soft edges are such pixels."""
    rgba = np.full((4, 4, 4), 255, np.uint8)
    rgba[1, 1] = (200, 200, 200, alpha)
    save(tmp_path / "set/a/0.png", Image.fromarray(rgba))
    with pytest.raises(BadDataError) as caught:
        image_folder(tmp_path / "set")[0]
    assert caught.value.found == "1 of 16 that are (mode RGBA)"
    for background in (0, 255):
        pixels = image_folder(tmp_path / "set", background=background)[0][0]
        blended = (200 * alpha + background * (255 - alpha)) / 255
        assert abs(int(pixels[1, 1]) - blended) <= 1 and pixels[0, 0] == 255


def test_opaque_images_need_none_and_are_the_same(tmp_path: Path) -> None:
    """Negative control: an alpha channel alone changes nothing, and the fingerprint is that of earlier versions."""
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for folder, image in (("a", Image.fromarray(colours)), ("b", Image.fromarray(colours).convert("RGBA"))):
        save(tmp_path / "set" / folder / "0.png", image)
    for background in (None, 7):
        dataset = image_folder(tmp_path / "set", mode="RGB", background=background)
        np.testing.assert_array_equal(dataset[0][0], colours.transpose(2, 0, 1))
        np.testing.assert_array_equal(dataset[1][0], dataset[0][0])
    plain, dark, light = (
        image_folder(tmp_path / "set", background=background).fingerprint() for background in (None, 0, 255)
    )
    assert len({plain, dark, light}) == 3


def test_a_background_is_a_colour(tmp_path: Path) -> None:
    root = write(tmp_path / "set", *THREE)
    for wrong in (-1, 256, (0, 0, 300)):
        with pytest.raises(ConfigError, match=r"^background: expected a number from 0 to 255"):
            image_folder(root, background=wrong)  # type: ignore[arg-type]


def test_frames_depth_and_suffixes_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grey = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (10, 200)]
    for number, name in enumerate(("0.gif", "0.tiff", "0.webp")):
        save(tmp_path / f"set{number}/a" / name, grey[0], save_all=True, append_images=grey[1:])
        dataset = image_folder(tmp_path / f"set{number}")
        for _ in range(2):
            assert abs(int(dataset[0][0].mean()) - 10) <= 1
        (said,) = warnings_of(caplog)
        assert f"a/{name}: of several frames or pages, only the first is read; so are all" in said
        caplog.clear()
    root = write(tmp_path / "jpeg", "a/0.png", content=png(3, "JPEG"))
    dataset = image_folder(root)
    dataset[0], dataset[0]
    (said,) = warnings_of(caplog)
    assert "a/0.png: its content is JPEG, which is decoded whatever the suffix" in said


def png_of_16_bits(transparent: int | None) -> bytes:
    """Return a PNG of 16 bits a channel, all pixels (0x1234, 0x1234, 0x1234), as Pillow writes none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\x12\x34" * 24) * 8
    clear = b"" if transparent is None else chunk(b"tRNS", struct.pack(">HHH", *[transparent] * 3))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + clear + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bits_are_read_in_part_and_never_made_opaque(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Pillow compares a transparent colour of 16 bits with pixels of 8, and finds none that is."""
    root = write(tmp_path / "deep", "a/0.png", content=png_of_16_bits(None))
    assert set(image_folder(root, mode="RGB")[0][0].flat) == {0x12}
    assert "of 16 bits a channel, only the upper 8 are read" in warnings_of(caplog)[0]
    clear = write(tmp_path / "clear", "a/0.png", content=png_of_16_bits(0x1234))
    with pytest.raises(BadDataError, match="found pixels of mode RGB, 16 bits with a transparent colour"):
        image_folder(clear, mode="RGB")[0]


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def test_no_file_reaches_another_program(tmp_path: Path) -> None:
    """Pillow gives PostScript to Ghostscript, whatever the suffix; the control shows that this one would be given."""
    root = write(tmp_path / "set", "a/0.png", "a/1.png", content=POSTSCRIPT)
    programs = tmp_path / "bin"
    programs.mkdir()
    stand_in = programs / "gs"
    stand_in.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/ran\n[ "$1" = --version ] && echo 10\nexit 0\n')
    stand_in.chmod(0o755)
    code = (
        "import sys, io; from pathlib import Path; from PIL import Image\n"
        "from logitstore.pipeline.datasets import image_folder\n"
        "from logitstore.storage.errors import BadDataError\n"
        "try:\n"
        "    if sys.argv[2] == 'ours': image_folder(sys.argv[1], size=8)[0]  # a text will do\n"
        "    else: Image.open(Path(sys.argv[1]) / 'a/0.png').load()\n"
        "except (BadDataError, OSError): print('refused')\n"
    )
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    ran = []
    for who in ("ours", "pillow"):
        subprocess.run([sys.executable, "-c", code, str(root), who], env=environment, check=True)
        ran.append((tmp_path / "ran").exists())
    assert ran == [False, True]


@pytest.mark.parametrize("kind", ["ICO", "PCX", "SGI"])
def test_only_listed_formats_are_opened(tmp_path: Path, kind: str) -> None:
    root = write(tmp_path / "set", "a/0.png", content=png(0, kind))
    with pytest.raises(BadDataError, match="UnidentifiedImageError"):
        image_folder(root)[0]
