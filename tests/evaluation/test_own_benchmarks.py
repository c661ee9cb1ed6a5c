"""A user's own benchmarks, given by path or by entry point."""

from __future__ import annotations

import sys

import pytest

from ppe_npu.errors import InputError
from ppe_npu.evaluation import benchmarks

MINE = """
class Mine:
    modality = "text"
    def __init__(self{arguments}): self.given = [{given}]
    def __len__(self): return 2
    def __getitem__(self, number): return {{"index": number, "prompt": "2 + 2?", "GT": "4"}}
thing = 3
class NoLength:
    modality = "text"
class NoModality(Mine):
    modality = "sound"
class Empty(Mine):
    def __len__(self): return 0
class Breaks(Mine):
    def __init__(self): raise RuntimeError("no\\nluck")
class NoTruth(Mine):
    def __getitem__(self, number): return {{"index": number, "prompt": "2 + 2?"}}
class BadTruth(Mine):
    def __getitem__(self, number): return {{"index": number, "prompt": "2 + 2?", "GT": 4}}
class BadIndex(Mine):
    def __getitem__(self, number): return {{"index": 1.5, "prompt": "2 + 2?", "GT": "4"}}
class TwoVisuals(Mine):
    def __getitem__(self, number):
        return {{"index": 1, "prompt": "2 + 2?", "GT": "4", "image_path": "a.png", "video_path": "b.mp4"}}
class Tuples(Mine):
    def __getitem__(self, number): return (1, "2 + 2?", "4")
class Closed:
    __slots__ = ()
    modality = "text"
    def __len__(self): return 1
    def __getitem__(self, number): return {{"index": 1, "prompt": "2 + 2?", "GT": "4"}}
class Raises(Mine):
    def __getitem__(self, number): return [][number]
"""


@pytest.fixture
def mine(tmp_path):
    """mine(arguments="", given="") -> path of a file with a user's classes."""

    def write(arguments: str = "", given: str = "") -> str:
        (tmp_path / "mine.py").write_text(MINE.format(arguments=arguments, given=given))
        return str(tmp_path / "mine.py")

    return write


def test_a_class_by_path_with_and_without_a_data_root(mine):
    benchmark = benchmarks.load(f"{mine()}:Mine", "/data")
    assert (benchmark.name, benchmark.given, len(benchmark)) == ("Mine", [], 2)
    assert benchmarks.load(f"{mine(', data_root', 'data_root')}:Mine", "/data").given == ["/data"]


def test_a_class_by_path_may_be_a_dataclass(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass Mine:\n"
        "    data_root: str\n    modality: str = 'text'\n    name: str = 'named'\n    def __len__(self): return 1\n"
        "    def __getitem__(self, number): return {'index': 0, 'prompt': self.data_root, 'GT': ['4', 'four']}\n"
    )
    benchmark = benchmarks.load(f"{tmp_path}/mine.py:Mine", "/data")
    assert (benchmark.name, benchmark[0]["prompt"]) == ("named", "/data")


def test_a_name_of_the_packages_own_is_refused(tmp_path):
    """A class that inherits from one of ours has its name until it sets another."""
    (tmp_path / "mine.py").write_text(
        "from ppe_npu.evaluation.benchmarks.mlvu import MLVU\nclass Mine(MLVU):\n    def __init__(self): pass\n"
        "    def __len__(self): return 1\n"
        "    def __getitem__(self, number): return {'index': 0, 'prompt': '', 'GT': 'a'}\n"
        "class Other(Mine):\n    name = 'mlvu_of_mine'\n"
    )
    with pytest.raises(InputError, match=r"Mine has the name of this package's mlvu, .* another attribute name"):
        benchmarks.load(f"{tmp_path}/mine.py:Mine", tmp_path)
    assert benchmarks.load(f"{tmp_path}/mine.py:Other", tmp_path).name == "mlvu_of_mine"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Nothing", "has no class 'Nothing'"),
        ("thing", "is a int: name a class"),
        ("NoLength", "has no __len__"),
        ("NoModality", "has modality 'sound': set it to one of image, video, text"),
        ("Empty", "holds no samples"),
        ("Breaks", r"cannot be constructed \(mine\.py:15\): RuntimeError: no"),
        ("NoTruth", "has no GT: a sample needs index, prompt and GT"),
        ("BadTruth", "has a GT of type int: use a str or a list of str"),
        ("BadIndex", "has an index of type float"),
        ("TwoVisuals", "has image_path and video_path: give one"),
        ("Tuples", "is a tuple: return a dict"),
        ("Closed", "has no name and none can be set: give its class an attribute name"),
        ("Raises", r"fails for its first 2 samples \(mine\.py:33\): IndexError"),
    ],
)
def test_malformed_classes(mine, name, reason):
    with pytest.raises(InputError, match=reason) as caught:
        benchmarks.load(f"{mine()}:{name}", "/data")
    assert "\n" not in str(caught.value)


def test_a_broken_first_row_is_left_to_the_run(tmp_path):
    (tmp_path / "mine.py").write_text(
        "class Mine:\n    modality = 'text'\n    def __len__(self): return 3\n"
        "    def __getitem__(self, number): return {'index': 1 / number, 'prompt': 'p', 'GT': 'a'}\n"
    )
    with pytest.raises(InputError, match=r"sample 1 of benchmark .* has an index of type float"):
        benchmarks.load(f"{tmp_path}/mine.py:Mine", tmp_path)


def test_files_that_cannot_be_imported(tmp_path):
    with pytest.raises(InputError, match=r"gone\.py does not exist"):
        benchmarks.load(f"{tmp_path}/gone.py:Mine", tmp_path)
    (tmp_path / "broken.py").write_text("import nothing_of_that_name")
    with pytest.raises(InputError, match=r"broken\.py cannot be imported \(broken\.py:1\): ModuleNotFoundError"):
        benchmarks.load(f"{tmp_path}/broken.py:Mine", tmp_path)
    with pytest.raises(InputError, match=r"'nosuch' is unknown: use path/to/file\.py:Class or one of activitynetqa, "):
        benchmarks.load("nosuch", tmp_path)


def test_a_class_by_entry_point(mine, tmp_path, monkeypatch):
    """An installed package is simulated by a folder of metadata beside its modules on the path."""
    mine(", data_root", "data_root")
    metadata = tmp_path / "of_a_user-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: of-a-user\nVersion: 1.0\n")
    points = "of_a_package = mine:Mine\nbroken = nothing_of_that_name:Mine\n"
    (metadata / "entry_points.txt").write_text(f"[{benchmarks.GROUP}]\n{points}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    benchmark = benchmarks.load("of_a_package", "/data")
    assert (benchmark.name, benchmark.given) == ("of_a_package", ["/data"])
    assert "of_a_package" in benchmarks.names()
    with pytest.raises(InputError, match=r"broken \(nothing_of_that_name:Mine\) cannot be imported"):
        benchmarks.load("broken", "/data")
