"""Laws of image folders: a folder and its zip are the same set, and what does not decode is named."""

import io
import os
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from logitstore.pipeline.datasets import ImageFolder, image_folder
from logitstore.storage.errors import BadDataError, ConfigError

NAMES = [
    "images/Alpha/character01/0001_01.png",
    "images/Alpha/character01/0001_02.png",
    "images/Alpha/character02/0002_01.png",
    "images/Beta/character01/0003_01.PNG",
]
CLASSES = ("Alpha/character01", "Alpha/character02", "Beta/character01")


def encoded(array: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    image = Image.fromarray(array)
    stream = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(stream, kind)
    return stream.getvalue()


def pixels(number: int, shape: tuple[int, ...] = (5, 4)) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, size=shape, dtype=np.uint8)


def write(root: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def pack(path: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def contents() -> dict[str, bytes]:
    """Four images in three class folders, and files that are no part of the set."""
    images = {name: encoded(pixels(number)) for number, name in enumerate(NAMES)}
    others = {
        "images/readme.txt": b"text",
        "__MACOSX/images/x.png": b"junk",
        "images/Beta/._0003.png": b"junk",
    }
    return dict(reversed((images | others).items()))


def both(tmp_path: Path, contents: dict[str, bytes]) -> list[ImageFolder]:
    return [
        image_folder(write(tmp_path / "folder", contents)),
        image_folder(pack(tmp_path / "set.zip", contents)),
    ]


def test_a_folder_and_its_zip_are_the_same_set(tmp_path: Path, contents: dict[str, bytes]) -> None:
    folder, archive = both(tmp_path, contents)
    for dataset in (folder, archive):
        assert dataset.ids == tuple(NAMES) and dataset.class_names == CLASSES
        assert dataset.labels is not None and dataset.labels.tolist() == [0, 0, 1, 2]
        assert len(dataset) == 4 and dataset.input_shape == (5, 4)
        for row, (example, label) in enumerate(dataset.__getitems__([0, 1, 2, 3])):
            assert example.dtype == np.uint8 and np.array_equal(example, pixels(row))
            assert label == [0, 0, 1, 2][row]
    assert folder.fingerprint() == archive.fingerprint()


def test_the_fingerprint_is_of_the_content(tmp_path: Path, contents: dict[str, bytes]) -> None:
    def changed(number: int, contents: dict[str, bytes], **options: object) -> str:
        root = pack(tmp_path / f"{number}.zip", contents)
        return image_folder(root, **options).fingerprint()  # type: ignore[arg-type]

    repainted = pixels(0)
    repainted[0, 0] ^= 1
    moved = {name.replace("Beta", "Gamma"): content for name, content in contents.items()}
    fingerprints = [
        changed(0, contents),
        changed(1, contents | {NAMES[0]: encoded(repainted)}),
        changed(2, moved),
        changed(3, contents, mode="RGB"),
        changed(4, contents, size=5),
        changed(5, contents, size=(5, 4)),
        changed(6, contents, subset="1:"),
        changed(7, contents, omit_classes=["Alpha/character02"]),
    ]
    assert len(set(fingerprints)) == len(fingerprints)
    assert changed(8, dict(reversed(contents.items()))) == fingerprints[0], "the order in the zip is not seen"
    assert changed(9, contents | {"images/readme.txt": b"other"}) == fingerprints[0]


@pytest.mark.parametrize(
    ("names", "class_names"),
    [
        (["cat/1.png", "dog/1.png"], ("cat", "dog")),
        (["set/cat/1.png", "set/dog/1.png"], ("cat", "dog")),
        (["set/cat/1.png", "set/dog/black/1.png"], ("cat", "dog/black")),
        (["a/1.png", "a/b/1.png"], ("a", "a/b")),
        (["deep/down/one/1.png"], ("one",)),
        (["1.png", "2.png"], ()),
    ],
)
def test_classes_are_named_by_their_folders(
    tmp_path: Path, names: list[str], class_names: tuple[str, ...]
) -> None:
    for dataset in both(tmp_path, {name: encoded(pixels(0)) for name in names}):
        assert dataset.class_names == class_names
        assert (dataset.labels is None) == (class_names == ())
        assert isinstance(dataset[0], np.ndarray if class_names == () else tuple)


def test_colours_come_channels_first(tmp_path: Path) -> None:
    colours = pixels(0, (6, 3, 3))
    root = write(tmp_path / "set", {"a/x.png": encoded(colours), "a/y.png": encoded(pixels(1, (6, 3)))})
    dataset = image_folder(root, mode="RGB")
    assert dataset.input_shape == (3, 6, 3)
    assert np.array_equal(dataset[0][0], colours.transpose(2, 0, 1))
    assert np.array_equal(dataset[1][0], np.stack([pixels(1, (6, 3))] * 3))
    assert image_folder(root)[0][0].shape == (6, 3)


def test_one_bit_images_are_black_and_white(tmp_path: Path) -> None:
    root = write(tmp_path / "set", {"a/x.png": encoded(pixels(0), mode="1")})
    assert set(np.unique(image_folder(root)[0][0]).tolist()) == {0, 255}


def test_images_are_resized_on_request_alone(tmp_path: Path) -> None:
    root = write(tmp_path / "set", {"a/x.png": encoded(pixels(0)), "a/y.png": encoded(pixels(1, (7, 9)))})
    strict = image_folder(root)
    strict[0]
    with pytest.raises(BadDataError) as caught:
        strict[1]
    assert str(caught.value) == (
        f"{root}: a/y.png: expected 5 x 4 pixels (height x width), like the first image, found 7 x 9; "
        "give size = [height, width] to resize all of them"
    )
    for size, shape in ((6, (6, 6)), ((3, 8), (3, 8))):
        dataset = image_folder(root, size=size)  # type: ignore[arg-type]
        assert dataset.input_shape == shape and [image.shape for image, _ in dataset] == [shape, shape]  # type: ignore[attr-defined]
    same = image_folder(root, size=(5, 4))
    assert np.array_equal(same[0][0], pixels(0)), "an image of that size is left as it is"


def test_what_does_not_decode_is_named(tmp_path: Path) -> None:
    whole = encoded(pixels(0, (40, 40)))
    deep = encoded(np.arange(12, dtype=np.uint16).reshape(3, 4))
    files = {
        "a/cut.png": whole[: len(whole) // 2],
        "a/deep.png": deep,
        "a/empty.png": b"",
        "a/text.jpg": b"not an image",
    }
    for dataset in both(tmp_path, files | {"a/1.png": encoded(pixels(0))}):
        root = dataset._files.root
        assert isinstance(dataset[0], tuple)
        for row, (name, message) in enumerate(
            [
                ("a/cut.png", "expected an image file, found "),
                (
                    "a/deep.png",
                    "expected pixels of 8 bits a channel, found pixels of mode I;16; convert it to",
                ),
                (
                    "a/empty.png",
                    "expected an image file, found 0 bytes that cannot be decoded (UnidentifiedImageE",
                ),
                (
                    "a/text.jpg",
                    "expected an image file, found 12 bytes that cannot be decoded (UnidentifiedIma",
                ),
            ],
            start=1,
        ):
            with pytest.raises(BadDataError) as caught:
                dataset[row]
            assert str(caught.value).startswith(f"{root}: {name}: {message}")
            assert "\n" not in str(caught.value)


def test_a_damaged_or_missing_file_is_named(tmp_path: Path, contents: dict[str, bytes]) -> None:
    folder, archive = both(tmp_path, contents)
    (tmp_path / "folder" / NAMES[1]).unlink()
    with pytest.raises(
        BadDataError, match=r"0001_02\.png: expected a file that can be read, found FileNotFoundError"
    ):
        folder[1]
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path) as opened:
        start = opened.getinfo(NAMES[1]).header_offset + 30 + len(NAMES[1])
    with path.open("r+b") as file:
        file.seek(start + 20)
        byte = file.read(1)
        file.seek(start + 20)
        file.write(bytes([byte[0] ^ 0xFF]))
    with pytest.raises(BadDataError, match=r"0001_02\.png: expected a file that can be read, found "):
        archive[1]
    assert np.array_equal(archive[0][0], pixels(0))


def test_a_place_without_class_folders_is_named(tmp_path: Path, contents: dict[str, bytes]) -> None:
    def message(root: Path) -> str:
        with pytest.raises(BadDataError) as caught:
            image_folder(root)
        return str(caught.value)

    absent = tmp_path / "absent"
    assert message(absent).startswith(
        f"{absent}: expected a folder of class folders, or a zip of one, found nothing there; correct the name"
    )
    empty = write(tmp_path / "empty", {"a/readme.txt": b""})
    assert message(empty).startswith(f"{empty}: expected images (.apng, ") and "found 0 images; " in message(
        empty
    )
    mixed = write(tmp_path / "mixed", {"a/x.png": b"", "y.png": b""})
    assert message(mixed) == (
        f"{mixed}: expected every image in a class folder, found 1 images in none, such as 'y.png'; "
        "move them into class folders"
    )
    cut = pack(tmp_path / "set.zip", contents)
    cut.write_bytes(cut.read_bytes()[:-40])
    assert message(cut).startswith(f"{cut}: expected a zip of class folders, found BadZipFile: ")
    outside = pack(tmp_path / "outside.zip", {"/a/x.png": b""})
    assert message(outside) == (
        f"{outside}: expected distinct relative file names, found '/a/x.png'; pack the folder again"
    )
    with pytest.raises(ConfigError, match=r"^size: expected pixels of 1 or more, found 0; "):
        image_folder(write(tmp_path / "good", contents), size=0)


def test_threads_processes_and_pickles_read_the_same(tmp_path: Path) -> None:
    files = {f"{number % 3}/{number:03}.png": encoded(pixels(number)) for number in range(60)}
    dataset = image_folder(pack(tmp_path / "set.zip", files))
    expected = [np.array(example) for example, _ in dataset]  # type: ignore[attr-defined]
    rows = list(range(60)) * 3
    with ThreadPoolExecutor(4) as threads:
        for row, (example, _) in zip(rows, threads.map(dataset.__getitem__, rows), strict=True):
            assert np.array_equal(example, expected[row])
    copy = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(copy[7][0], expected[7]) and copy.fingerprint() == dataset.fingerprint()


def test_loader_processes_do_not_share_a_file_position(tmp_path: Path) -> None:
    files = {f"{number % 3}/{number:03}.png": encoded(pixels(number)) for number in range(60)}
    dataset = image_folder(pack(tmp_path / "set.zip", files))
    expected = np.stack([example for example, _ in dataset])  # type: ignore[attr-defined]  # the zip is open now
    context = "fork" if hasattr(os, "fork") else None
    loader = DataLoader(dataset, batch_size=5, num_workers=2, multiprocessing_context=context)  # type: ignore[arg-type]
    for _ in range(2):
        inputs = np.concatenate([np.asarray(batch[0]) for batch in loader])
        assert np.array_equal(inputs, expected)


def test_omniglot(shared_data: Path) -> None:
    path = shared_data / "omniglot_images_background.zip"
    if not path.is_file():
        pytest.skip(f"needs Omniglot: {path} is no file")
    dataset = image_folder(path)
    assert (len(dataset), len(dataset.class_names), dataset.input_shape) == (19_280, 964, (105, 105))
    assert dataset.labels is not None and set(np.bincount(dataset.labels).tolist()) == {20}
    assert dataset.class_names[0] == "Alphabet_of_the_Magi/character01"
    rows = [
        dataset.ids.index(f"images_background/Braille/character01/0192_{drawer}.png")
        for drawer in ("03", "19")
    ]
    (one, label), (other, same_label) = dataset.__getitems__(rows)  # a duplicate that the set is known for
    assert np.array_equal(one, other) and label == same_label
    assert set(np.unique(one).tolist()) == {0, 255}
