"""Only regular files on this machine are opened: addresses, named pipes, devices and sockets are refused by name."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from PIL import Image

from ppe_npu import CompressionConfig
from ppe_npu.data.pictures import image_size, load_image
from ppe_npu.data.videos import load_video, video_header
from ppe_npu.errors import InputError
from ppe_npu.evaluation.samples import measure
from ppe_npu.training.data import check_records
from ppe_npu.utils.paths import existing_file, is_folder


class Nowhere(os.PathLike):
    def __fspath__(self):
        return 5


READERS = {"image": (load_image, image_size), "video": (load_video, video_header)}
ADDRESSES = [
    ("http://host/a.png", "download it first"),
    ("HTTPS://host/a.png", "download it first"),
    ("http:/host/a.png", "download it first"),
    ("ftp://host/a.png", "download it first"),
    ("rtsp://camera/1", "download it first"),
    ("concat://a|b", "download it first"),
    ("s3://bucket/a.png", "copy it to this machine"),
    ("GS://bucket/a.png", "copy it to this machine"),
    ("file:///data/a.png", "without file://"),
    ("FILE:/data/a.png", "without file://"),
    ("data:image/png;base64,iVBORw0KGgo=", "give the file's path"),
    ("Data:,x", "give the file's path"),
    ("data:image/png;base64," + "A" * 10**6, "give the file's path"),
    ("\\\\server\\share\\a.png", "is a Windows network path"),
]


@pytest.fixture
def odd(tmp_path):
    """{kind: (path, words of its message)}: things that can be opened but never should be."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to pipe").symlink_to(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    (tmp_path / "folder").mkdir()
    server = socket.socket(socket.AF_UNIX)
    os.chdir(tmp_path)  # a socket's path must be short
    server.bind("socket")
    yield {
        "named pipe": (tmp_path / "pipe", "is a named pipe"),
        "link to a named pipe": (tmp_path / "to pipe", "is a named pipe"),
        "link to nothing": (tmp_path / "dangling", "is a link to .*gone, which does not exist"),
        "ring of links": (tmp_path / "ring", "cannot be a file"),
        "socket": (tmp_path / "socket", "is a socket"),
        "device": (Path("/dev/zero"), "is a device"),
        "terminal": (Path("/dev/tty"), "is a device"),
        "the system's own": (Path("/proc/self/environ"), "is not a regular file"),
        "nothing": (tmp_path / "none.png", "does not exist"),
        "below a file": (Path(__file__) / "a.png", "does not exist"),
        "long name": (tmp_path / ("x" * 5000), "cannot be a file"),
        "NUL": ("a\0b.png", r"a\\x00b\.png cannot be a file"),
        "half a pair": ("\ud800.png", "(cannot be a file|does not exist)"),
        "line break": ("a\nb.png", r"a\\nb\.png does not exist"),
        "somebody's home": ("~nobody-has-this-name/a.png", "does not exist"),
        "number": (5, "is of type int"),
        "bytes": (b"a.png", "is of type bytes"),
        "a path that is none": (Nowhere(), "is of type Nowhere"),
    }
    server.close()


def test_entries_of_a_folder_are_paths_also_those_of_bytes(tmp_path):
    Image.new("RGB", (9, 6)).save(tmp_path / "a.png")
    for folder in (tmp_path, os.fsencode(tmp_path)):
        (entry,) = os.scandir(folder)
        assert (load_image(entry).size, image_size(entry)) == ((9, 6), (6, 9))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_what_is_no_file_is_refused_before_it_is_opened(odd, monkeypatch, kind):
    monkeypatch.chdir(Path(odd["nothing"][0]).parent)
    for what, (path, words) in odd.items():
        reads = READERS[kind] if isinstance(path, (str, os.PathLike)) else ()
        for read in (lambda path: existing_file(path, kind), *reads):
            with pytest.raises(InputError, match=words) as error:
                read(path)
            assert str(error.value).startswith(kind), what
            assert len(str(error.value)) < 500
            assert str(error.value).isprintable()
    for read in READERS[kind][1:]:
        with pytest.raises(InputError, match="is a folder"):
            read(odd["nothing"][0].parent / "folder")


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize(("path", "words"), ADDRESSES, ids=[address[:24] for address, _ in ADDRESSES])
def test_an_address_is_refused_in_its_own_words(kind, path, words):
    joined = path.startswith(("http", "s3", "file"))  # these are known as a Path, too, which keeps one slash
    for given in (path, Path(path)) if joined else (path,):
        for read in READERS[kind]:
            with pytest.raises(InputError, match=words) as error:
                read(given)
            assert len(str(error.value)) < 400
        assert not is_folder(given)


@pytest.mark.parametrize(
    "name", ["10:30.png", "data:1.png", "a http.png", "s3:x.png", "file:x.png", "übersicht 雨.png", "~x.png"]
)
def test_a_name_with_a_colon_is_a_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 3)).save(name, "PNG")
    assert existing_file(name, "image") == Path(name)
    assert image_size(name) == image_size(tmp_path / name) == (3, 4)
    assert existing_file(Path(name), "image").is_file()


def test_links_to_files_are_followed_and_home_is_found(tmp_path, monkeypatch):
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert image_size(tmp_path / "b.png") == image_size("~/a.png") == (3, 4)


@pytest.mark.parametrize(("path", "words"), [address for address in ADDRESSES if len(address[0]) < 99])
def test_an_address_in_a_record_is_named_as_it_stands(tmp_path, path, words):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    (tmp_path / "web.jsonl").write_text(json.dumps({"image": path, "conversations": turns}))
    (fault,) = check_records(tmp_path / "web.jsonl").faults
    assert str(fault).startswith(f"web.jsonl line 1: image {path} ")
    assert words in str(fault)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("key", ["image_path", "video_path"])
def test_a_benchmarks_sample_is_measured_without_opening_what_may_never_end(tiny_processor, tmp_path, key):
    os.mkfifo(tmp_path / "pipe.png")
    config = CompressionConfig.preset("ppe", k=4)
    there, missing = (
        measure({"prompt": "row red", key: value}, tiny_processor, config)
        for value in (str(tmp_path / "pipe.png"), str(tmp_path / "none.png"))
    )
    assert (there.before, there.after) == (missing.before, missing.after)
