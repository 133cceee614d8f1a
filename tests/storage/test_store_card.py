"""`STORE.md`, the card of a store for people: it follows from the metadata, and no text in it breaks out."""

import html
import logging
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from support import stores
from support.buckets import MemoryS3, serving_bucket
from support.messages import Sentences
from support.stores import Teacher

import logitstore
from logitstore.storage.api import Store, open_store
from logitstore.storage.backends.local import Folder
from logitstore.storage.errors import ConfigError, LogitStoreError, StorageFull, WrongStore
from logitstore.storage.format.constants import CARD_FILE, STAGING
from logitstore.storage.integrity.verify import verify
from logitstore.storage.sharing import card_file
from logitstore.storage.sharing.card_file import refresh_card, write_card
from logitstore.storage.sharing.copying import copy_store
from logitstore.storage.sharing.markdown import inline, paragraphs, quoted
from logitstore.storage.sharing.store_card import Score, scores_in, states

pytestmark = pytest.mark.usefixtures("without_fsync")

CARD = {
    "name": "strokes",
    "data_set": "drawn by hand",
    "data_set_licence": "CC0-1.0",
    "licence": "CC-BY-4.0",
    "contact": "ada@example.org",
    "description": "Six classes.\n\nSee https://example.org/a_b",
}
TEACHERS = {
    "wide": Teacher(views=2),
    "small": Teacher(encoding={"transform": {"max_kl": 1e-2}}),
    "exact": Teacher(encoding={"max_kl": 1e-2}),
    "top": Teacher(encoding={"top_k": 2}),
    "whole": Teacher(encoding="float32"),
}
HOSTILE = (
    "---\nlicense: mit\n---\n",
    "# heading\n\n- list\n1. item\n\n> quote\n\n    code",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "<!-- hidden\n\n--> [text](javascript:alert(1)) ![i](http://x/y)",
    "```\nfence\n```\n~~~\n`code`",
    "| a | b |\n| --- | --- |\n| 1 | 2 |",
    "$x$ $$y$$ \\(z\\) \\[w\\]",
    "[ref]: https://evil.example 'title'\n[ref]",
    "&lt;b&gt; &#60;b&#62; &amp;amp;",
    "*emphasis* _emphasis_ **strong** ~~gone~~ H~2~O x^2^ ==mark==",
    "a\u202eb\u2028c\x1b[31md\x00e\u200bf\ufeff",
    "line  \nbreak\\\nbreak",
    "Setext\n======\nSetext\n------",
    "* * *\n___\n+ item",
    "https://host/<b>x</b> javascript:alert(1) <mailto:a@b.c>",
    "| `wide` | 10 | 99.999 % | 0.00001 | 0.00001 |",
    "😀 clàss 漢字",
)
STRUCTURE = {"p", "h1", "h2", "table", "thead", "tbody", "tr", "th", "td", "code", "pre", "em", "a"}


def make(path: Path, card: dict[str, str] | None = None, *, captured: bool = True) -> Store:
    rows = 14
    store = logitstore.create_store(
        path,
        num_classes=5,
        labels=np.arange(rows) % 5,
        digests=np.arange(rows, dtype=np.uint64),
        card=card,
    )
    if captured:
        logits = stores.some_logits(1, rows, 5)
        stores.write_capture(store, "wide", logits, Teacher(), stores.some_inputs(rows))
    return store


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a capture in each encoding, with a clustering; it is not changed."""
    path = tmp_path_factory.mktemp("whole") / "store.zarr"
    logging.getLogger("logitstore").setLevel(logging.ERROR)
    stores.add_clustering(stores.make(path, rows=14, teachers=TEACHERS).store)
    return path


def rendered(text: str) -> str:
    return str(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))


def tags(page: str) -> set[str]:
    return {tag.lower() for tag in re.findall(r"<\s*/?\s*([A-Za-z!?][\w-]*)", page)}


def visible(page: str) -> str:
    return html.unescape(re.sub(r"<[^<>]*>", "", page)).strip()


def split(card: str) -> tuple[dict[str, Any], str]:
    """Return the header of a card and its body."""
    empty, header, body = card.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(header), body


# What it tells


def test_the_card_tells_what_a_store_is(whole: Path) -> None:
    store = open_store(whole)
    text = write_card(store, dry_run=True).text
    header, body = split(text)
    assert header["size_categories"] == ["n<1K"]
    assert not header["viewer"]
    for expected in (
        "| rows | 14 |",
        "| classes | 5: clàss 0, clàss 1,",
        f"| digest | `{store.digest}` |",
        "| `wide` | 2 | float16 | logits rounded to float16 |",
        "| `small` | 1 | transform | KL to the teacher at most 0.01 nats in every row, at T = 1, 2, 4, 8 |",
        "| `exact` | 1 | error-budget | KL to the teacher at most 0.01 nats in every row, at T ≥ 1 |",
        "| `top` | 1 | top-k | the 2 largest logits of the teacher",
        "| `whole` | 1 | float32 | exact |",
        "`wide-2x2`",
    ):
        assert expected in body, expected
    assert states(text, store.digest)
    assert not states(text, store.digest[:-1] + "x")


def test_the_makers_words_stand_on_it(tmp_path: Path) -> None:
    header, body = split(write_card(make(tmp_path / "a", CARD)).text)
    assert (header["license"], header["pretty_name"]) == ("cc-by-4.0", "strokes")
    assert "\n# strokes\n\nSix classes.\n\nSee <https://example.org/a_b>\n" in body
    assert "| licence of the data set | CC0-1.0 |" in body
    assert "| contact | <ada@example.org> |" in body
    other, _ = split(write_card(make(tmp_path / "b", {"licence": "ours alone"})).text)
    assert other["license"] == "other"
    assert "license" not in split(write_card(make(tmp_path / "c")).text)[0]


def test_the_lines_that_load_a_store_load_it(tmp_path: Path) -> None:
    path = tmp_path / 'a "store"'
    text = write_card(make(path), location=str(path), dry_run=True).text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)  # noqa: S102
    assert found["store"].digest == open_store(path).digest
    assert sum(len(batch) for batch in found["stream"]) == 14


def test_a_capture_that_cannot_be_read_is_said_so(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "store.zarr"
    shutil.copytree(whole, path)
    (path / "teachers" / "wide" / "__logitstore__" / "spec.json").write_bytes(b"{}\n")
    text = write_card(path, dry_run=True).text
    assert "| `wide` |  |  | cannot be read: " in text
    assert "| `exact` | 1 |" in text


# Texts of others


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The card of a store with a harmless one."""
    path = tmp_path_factory.mktemp("plain") / "store.zarr"
    return write_card(make(path, dict.fromkeys(CARD, "word"), captured=False)).text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_words_change_neither_header_nor_structure(tmp_path: Path, plain: str, text: str) -> None:
    store = make(tmp_path / "hostile", dict.fromkeys(CARD, text), captured=False)
    card = write_card(store, location=text, dry_run=True).text
    header, body = split(card)
    assert header == {**split(plain)[0], "license": "other", "pretty_name": text}
    page, harmless = rendered(body), rendered(split(plain)[1])
    assert tags(page) <= STRUCTURE
    for tag in STRUCTURE - {"p", "a"}:
        assert page.count(f"<{tag}>") == harmless.count(f"<{tag}>"), tag
    assert set(re.findall(r'href="([^":]*):', page)) <= {"https", "http", "mailto"}
    outside = re.sub(r"```python\n.*?\n```", "", body, flags=re.DOTALL)
    assert "$" not in outside
    assert "\\" not in outside
    assert scores_in(card) == {}
    assert all(one == "\n" or one.isprintable() for one in body)


@given(st.text(max_size=60))
@settings(max_examples=50, deadline=None)
def test_any_line_is_shown_as_it_is(text: str) -> None:
    page = rendered(f"# {inline(text)}\n")
    shown = " ".join(text.split())
    assert tags(page) <= {"h1", "a"}
    if shown.isprintable():
        assert visible(page) == shown
    table = rendered(f"| a | b |\n| --- | --- |\n| {inline(text)} | x |\n")
    assert (table.count("<td>"), table.count("<tr>")) == (2, 2)


@given(st.text(alphabet="#>-+*_=~`|[]()<>!&\\.:1a \n\t$", max_size=40))
@settings(max_examples=50, deadline=None)
def test_any_paragraph_is_a_paragraph(text: str) -> None:
    page = rendered("\n".join(paragraphs(text)))
    assert tags(page) <= {"p"}
    assert visible(page).split() == text.split()


@given(st.text(max_size=60))
@settings(max_examples=50, deadline=None)
def test_any_text_is_one_scalar_of_yaml(text: str) -> None:
    line = quoted(text)
    assert "\n" not in line
    if not re.search("[\ud800-\udfff]", text):
        assert yaml.safe_load(f"key: {line}\nnext: 1\n") == {"key": text, "next": 1}


def test_without_the_escapes_words_break_out() -> None:
    """Negative control: the page of a text as it is has other elements."""
    assert all(tags(rendered(text)) - {"p"} for text in HOSTILE[1:3])


def test_a_damaged_card_in_the_metadata_is_an_error(tmp_path: Path) -> None:
    make(tmp_path / "a")
    (tmp_path / "a" / "samples" / "__logitstore__" / "spec.json").write_bytes(b"{}\n")
    with pytest.raises(LogitStoreError):
        write_card(tmp_path / "a")


# The file


def test_the_card_is_replaced_and_no_stray(tmp_path: Path) -> None:
    store = make(tmp_path / "a")
    before = stores.tree(tmp_path / "a")
    first = write_card(store)
    assert (first.changed, first.path, first.digest) == (True, tmp_path / "a" / CARD_FILE, store.digest)
    assert not write_card(tmp_path / "a").changed
    (tmp_path / "a" / CARD_FILE).write_text("mine")
    (tmp_path / "a" / "other.md").write_text("mine")
    assert write_card(store, dry_run=True).changed
    assert (tmp_path / "a" / CARD_FILE).read_text() == "mine"
    assert verify(tmp_path / "a").strays == ["other.md"]
    assert write_card(store).changed
    assert (tmp_path / "a" / CARD_FILE).read_text() == first.text
    (tmp_path / "a" / "other.md").unlink()
    assert stores.tree(tmp_path / "a") == before  # nothing staged is left, nor a lock
    assert logitstore.write_card is write_card


def test_files_of_a_hub_are_no_strays(tmp_path: Path) -> None:
    make(tmp_path / "a")
    for name in ("README.md", ".gitattributes", ".git/config", ".cache/huggingface/download/x.lock"):
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / name).write_text("x")
    assert verify(tmp_path / "a").strays == []
    # Negative controls: of a part, and such as plain readers take for data.
    (tmp_path / "a" / "samples" / "README.md").write_text("x")
    (tmp_path / "a" / ".git" / "zarr.json").write_text("x")
    report = verify(tmp_path / "a")
    assert report.strays == ["samples/README.md"]
    assert [problem.where for problem in report.problems] == [str(tmp_path / "a" / ".git" / "zarr.json")]


def test_the_card_of_another_file_is_written_there_alone(tmp_path: Path) -> None:
    store = make(tmp_path / "a")
    card = write_card(store, tmp_path / "README.md", location="hf://datasets/a/b")
    assert (tmp_path / "README.md").read_text() == card.text
    assert 'open_store("hf://datasets/a/b", expect="sha256:' in card.text
    assert not (tmp_path / "a" / CARD_FILE).exists()


def test_a_link_in_its_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    store = make(tmp_path / "a")
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "a" / CARD_FILE).symlink_to(tmp_path / "precious")
    write_card(store)
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (tmp_path / "a" / CARD_FILE).is_symlink()


def test_the_card_gets_into_the_store_that_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, text = make(tmp_path / "a"), card_file.card_text

    def exchanged(*arguments: Any) -> str:
        made = text(*arguments)
        (tmp_path / "a").rename(tmp_path / "b")
        make(tmp_path / "a", CARD)
        return made

    monkeypatch.setattr(card_file, "card_text", exchanged)
    with pytest.raises(WrongStore):
        write_card(store)
    assert not (tmp_path / "a" / CARD_FILE).exists()


def test_a_copy_has_the_card_of_its_own_digest(tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole, tmp_path / "a")
    text = write_card(tmp_path / "a").text
    copy_store(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / CARD_FILE).read_text() == text
    part = copy_store(tmp_path / "a", tmp_path / "c", teachers=["wide"])
    assert states((tmp_path / "c" / CARD_FILE).read_text(), part.digest)
    (tmp_path / "b" / CARD_FILE).unlink()
    copy_store(tmp_path / "a", tmp_path / "b")  # a killed copy is completed
    assert (tmp_path / "b" / CARD_FILE).read_text() == text
    copy_store(tmp_path / "a", tmp_path / "d", dry_run=True)
    assert not (tmp_path / "d").exists()


def test_scores_are_kept_and_copied(tmp_path: Path) -> None:
    store = make(tmp_path / "a")
    score = Score(1000, 0.9125, 0.25, 0.01)
    refresh_card(store.root, {"wide": score, "other": score})
    assert scores_in((tmp_path / "a" / CARD_FILE).read_text()) == {"wide": score}
    again = write_card(tmp_path / "a")
    assert not again.changed
    assert scores_in(again.text) == {"wide": score}
    copy_store(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / CARD_FILE).read_text() == again.text
    (tmp_path / "a" / CARD_FILE).write_text("| `wide` | 10 | 100.001 % | 0.1 | <b> |\n")
    assert scores_in(write_card(tmp_path / "a").text) == {}


def test_a_card_that_is_current_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(tmp_path / "a")
    refresh_card(store.root)
    monkeypatch.setattr(Folder, "replace", lambda *_: pytest.fail("written again"))
    refresh_card(store.root, made=False)
    assert copy_store(tmp_path / "a", tmp_path / "a2", dry_run=True).digest == store.digest


def test_a_card_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, sentence: Sentences
) -> None:
    def full(self: Folder, key: str, data: bytes) -> None:
        where = str(self.path / key)
        raise StorageFull(where, expected="room to write", found="none", remedy="free space")

    store = make(tmp_path / "a")
    monkeypatch.setattr(Folder, "replace", full)
    caplog.set_level(logging.INFO, "logitstore")
    refresh_card(store.root, made=False)
    assert caplog.records == []
    refresh_card(store.root)
    (record,) = caplog.records
    sentence(record.getMessage())
    assert record.levelname == "WARNING"
    with pytest.raises(StorageFull):  # whoever asks for the card is told
        write_card(store)
    assert verify(tmp_path / "a", deep=True).exit_code == 0


def test_a_part_that_is_sealed_meanwhile_is_on_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path / "a")
    replace, other = Folder.replace, open_store(tmp_path / "a")

    def late(self: Folder, key: str, data: bytes) -> None:
        if "deep" not in other.teachers:
            logits = stores.some_logits(1, 14, 5, seed=4)
            stores.write_capture(other, "deep", logits, Teacher(), stores.some_inputs(14))
            refresh_card(other.root)
        replace(self, key, data)

    # Ours is put after theirs, from an older log.
    monkeypatch.setattr(Folder, "replace", late)
    refresh_card(store.root)
    assert states((tmp_path / "a" / CARD_FILE).read_text(), open_store(tmp_path / "a").digest)


def test_writers_at_once_leave_one_whole_card(tmp_path: Path) -> None:
    store = make(tmp_path / "a")
    texts = {location: write_card(store, location=location, dry_run=True).text for location in "abcdefgh"}
    threads = [
        threading.Thread(target=write_card, args=(tmp_path / "a",), kwargs={"location": location})
        for location in texts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a" / CARD_FILE).read_text() in texts.values()
    assert not (tmp_path / "a" / STAGING).exists()


# Other places


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryS3]:
    with serving_bucket() as found:
        given = {"ENDPOINT": found.url, "REGION": "us-east-1", "ALLOW_HTTP": "true", "TIMEOUT": "5s"}
        for name, value in {**given, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        assert isinstance(found.serve, MemoryS3)
        yield found.serve


def test_the_card_in_a_bucket_is_replaced(tmp_path: Path, bucket: MemoryS3) -> None:
    store = make(tmp_path / "a", CARD)
    url = "s3://bucket/a.zarr"
    copy_store(tmp_path / "a", url)
    text = bucket.objects[f"a.zarr/{CARD_FILE}"].decode()
    assert text == write_card(store).text
    bucket.objects[f"a.zarr/{CARD_FILE}"] = b"somebody else's"
    assert write_card(url).changed
    assert bucket.objects[f"a.zarr/{CARD_FILE}"].decode() == text
    assert not write_card(url).changed
    assert verify(card_file.folder_at(url)).strays == []


def test_a_place_that_is_only_read_is_refused_in_one_line(tmp_path: Path, whole: Path) -> None:
    from zarr.storage import LocalStore

    place = LocalStore(whole, read_only=True)
    with pytest.raises(ConfigError):
        write_card(place)
    assert write_card(place, tmp_path / "README.md").changed
