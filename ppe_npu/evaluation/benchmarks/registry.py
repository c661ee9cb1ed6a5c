"""Finds benchmarks: those of this package by name, a user's by entry point or by the path of its file."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Collection, Mapping
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError, shown
from ppe_npu.evaluation.benchmarks.protocol import MODALITIES, VISUALS, Benchmark, check_sample
from ppe_npu.evaluation.own_code import modules_of, place
from ppe_npu.evaluation.protocols import Protocol
from ppe_npu.evaluation.rows import FAULTS, fault_of
from ppe_npu.utils.escape import brief
from ppe_npu.utils.reading import checksum

GROUP = "ppe_npu.benchmarks"  # of entry points: name = package.module:Class
TRIED = 8  # samples that are tried until one can be read
_LONGEST = 100  # bytes of a benchmark's name
_HERE = "ppe_npu.evaluation.benchmarks"

# name -> module:class, of modules in this package, which are imported on demand.
OURS = {
    "layout": "layout:Layout",
    "motion": "layout:Motion",
    "mmbench_en": "mmbench:MMBench",
    "mmbench_en_circular": "mmbench:MMBenchCircular",
    "mmbench_cn": "mmbench:MMBenchCN",
    "mmbench_cn_circular": "mmbench:MMBenchCNCircular",
    "scienceqa": "scienceqa:ScienceQA",
    "scienceqa_img": "scienceqa:ScienceQAImage",
    "textvqa": "textvqa:TextVQA",
    "docvqa": "docvqa:DocVQA",
    "infovqa": "docvqa:InfoVQA",
    "ocrbench": "ocrbench:OCRBench",
    "chartqa": "chartqa:ChartQA",
    "flickr30k": "flickr30k:Flickr30k",
    "gqa": "gqa:GQA",
    "vizwiz": "vizwiz:VizWiz",
    "pope": "pope:POPE",
    "mme": "mme:MME",
    "ai2d": "ai2d:AI2D",
    "mmmu": "mmmu:MMMU",
    "seedbench_image": "seedbench:SEEDBenchImage",
    "seedbench_video": "seedbench:SEEDBenchVideo",
    "videomme": "videomme:VideoMME",
    "videomme_subtitles": "videomme:VideoMMESubtitles",
    "nextqa_mc": "nextqa:NExTQA",
    "nextqa_oe": "nextqa:NExTOE",
    "mvbench": "mvbench:MVBench",
    "mlvu": "mlvu:MLVU",
    "longvideobench": "longvideobench:LongVideoBench",
    "egoschema": "egoschema:EgoSchema",
    "perceptiontest": "perceptiontest:PerceptionTest",
    "activitynetqa": "activitynetqa:ActivityNetQA",
    "longvideobench_v": "longvideobench:LongVideoBenchVideo",
    "mmstar": "mmstar:MMStar",
    "realworldqa": "realworldqa:RealWorldQA",
    "hallusionbench": "hallusionbench:HallusionBench",
    "vqav2": "vqav2:VQAv2",
    "lvbench": "lvbench:LVBench",
    "tempcompass": "tempcompass:TempCompass",
    "mmmu_pro": "mmmu_pro:MMMUPro",
    "mmmu_pro_vision": "mmmu_pro:MMMUProVision",
    "seedbench_2_plus": "seedbench2plus:SEEDBench2Plus",
    "refcoco": "grounding:RefCOCO",
    "refcoco_plus": "grounding:RefCOCOPlus",
    "refcocog": "grounding:RefCOCOg",
    "screenspot_v2": "grounding:ScreenSpotV2",
    "screenspot_pro": "grounding:ScreenSpotPro",
    "mathvista": "mathvista:MathVista",
    "charxiv_reasoning": "charxiv:CharXivReasoning",
    "ocrbench_v2_en": "ocrbench_v2:OCRBenchV2",
    "ocrbench_v2_cn": "ocrbench_v2:OCRBenchV2Chinese",
    "olmocr_bench": "olmocr_bench:OlmOCRBench",
    "mmlongbench_doc": "mmlongbench:MMLongBenchDoc",
    "mmlongbench_doc_evidence": "mmlongbench:MMLongBenchEvidence",
}
EMBEDDED = ("layout", "motion")  # their data is drawn by the demo
CIRCULAR = {name: f"{name}_circular" for name in ("mmbench_en", "mmbench_cn")}
_REGISTERED = {name: f"{_HERE}.{location}" for name, location in OURS.items()}


def names() -> list[str]:
    """The names that load() accepts: ours, registered ones and those of installed packages' entry points."""
    return sorted({*_REGISTERED, *(point.name for point in entry_points(group=GROUP))})


def modality(name: Any) -> str | None:
    """ "image" or "video" for one of our benchmarks by name; None for any other, which is not imported."""
    return _find(name).modality if isinstance(name, str) and name in OURS else None


def edition(name: str, protocol: Protocol) -> int | None:
    """The edition of the scoring of one of our benchmarks under a protocol; None for any other benchmark."""
    if name not in OURS:
        return None
    found = _find(name)
    return found.edition_by(protocol) if hasattr(found, "edition_by") else 1


def register(name: str, location: str) -> None:
    """Make a benchmark known in this process: location is "module:class"."""
    if name in _REGISTERED and _REGISTERED[name] != location:
        raise InputError(f"a benchmark named {name} is already registered ({_REGISTERED[name]}): choose another name")
    _REGISTERED[name] = location


def load(name: str, data_root: str | Path, protocol: Protocol | None = None) -> Benchmark:
    """Open a benchmark over the data below data_root (each benchmark's file documents what it expects there).

    Args:
        name: a registered name, an entry point's name, or "path/to/file.py:Class".
        data_root: passed to the class unless its constructor takes nothing.
        protocol: given to the benchmark's use(), which adopts its prompts and rules; a circular protocol also replaces
            MMBench by its circular variant. None: the benchmark's own rules.

    Raises:
        InputError: an unknown name, a class that is no benchmark, or data that is missing.
    """
    name = named_by(protocol, name)
    benchmark = _construct(name, _find(name), data_root)
    _check(name, benchmark)
    if getattr(benchmark, "name", None) is None:
        try:
            benchmark.name = _short(name)
        except AttributeError as error:
            raise InputError(
                f"benchmark {name} has no name and none can be set: give its class an attribute name"
            ) from error
    _check_name(benchmark.name)
    if benchmark.name in OURS and name not in OURS:
        raise InputError(
            f"benchmark {name} has the name of this package's {benchmark.name}, so their results would share a folder "
            "and a table: give its class another attribute name"
        )
    ask_by(protocol, benchmark)
    return benchmark


def named_by(protocol: Protocol | None, name: str) -> str:
    """The name of the benchmark that a protocol uses: a circular protocol replaces MMBench by its circular variant."""
    return CIRCULAR.get(name, name) if protocol is not None and protocol.circular else name


def ask_by(protocol: Protocol | None, benchmark: Any) -> None:
    """Make a benchmark ask and score by a protocol, if it has a method use()."""
    if protocol is not None and hasattr(benchmark, "use"):
        benchmark.use(protocol)


def _find(name: str) -> Any:
    """The class behind a name."""
    if name in _REGISTERED:
        module, _, cls = _REGISTERED[name].partition(":")
        return getattr(import_module(module), cls)
    path, _, cls = name.rpartition(":")
    if path.endswith(".py"):
        return _from_file(Path(path).expanduser(), cls)
    for point in entry_points(group=GROUP, name=name):
        try:
            return point.load()
        except FAULTS as error:  # a user's module may raise anything
            raise InputError(f"benchmark {name} ({point.value}) cannot be imported: {fault_of(error)}") from error
    raise InputError(f"benchmark {shown(name)} is unknown: use path/to/file.py:Class or one of {', '.join(names())}")


class _Source(SourceFileLoader):
    """Compiles the source at every import: cached bytecode of a file that was changed within a second is stale."""

    def get_code(self, fullname: str) -> Any:
        return self.source_to_code(self.get_data(self.path), self.path)


def _from_file(path: Path, cls: str) -> Any:
    if not path.is_file():
        raise InputError(f"benchmark file {path} does not exist: check the path")
    name = f"ppe_npu_benchmark_{path.stem}_{checksum(str(path.resolve()))}"  # files of one name are several modules
    spec = importlib.util.spec_from_file_location(name, path, loader=_Source(name, str(path)))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except FAULTS as error:  # a user's module may raise anything
        del sys.modules[spec.name]
        raise InputError(f"benchmark file {path} cannot be imported{_at(error, {spec.name})}") from error
    if not hasattr(module, cls):
        raise InputError(f"benchmark file {path} has no class {cls!r}: name one as {path}:Class")
    return getattr(module, cls)


def _construct(name: str, cls: Any, data_root: str | Path) -> Any:
    """An instance of the class, whose constructor may take data_root or nothing."""
    if not inspect.isclass(cls):
        raise InputError(f"benchmark {name} is a {type(cls).__name__}: name a class")
    try:
        required = inspect.signature(cls).parameters
        return cls(data_root) if required else cls()
    except InputError:
        raise
    except FAULTS as error:  # a user's class may raise anything
        raise InputError(f"benchmark {name} cannot be constructed{_at(error, modules_of(cls))}") from error


def _check(name: str, benchmark: Any) -> None:
    """Raise InputError unless the instance has the members of Benchmark; its first readable sample is checked, too."""
    for method in ("__len__", "__getitem__"):
        if not hasattr(benchmark, method):
            raise InputError(f"benchmark {name} has no {method}: a benchmark needs modality, __len__ and __getitem__")
    if getattr(benchmark, "modality", None) not in MODALITIES:
        found = getattr(benchmark, "modality", None)
        raise InputError(f"benchmark {name} has modality {found!r}: set it to one of {', '.join(MODALITIES)}")
    try:
        count = len(benchmark)
    except FAULTS as error:  # a user's class may raise anything
        raise InputError(f"benchmark {name} has no length{_at(error, modules_of(type(benchmark)))}") from error
    if not count:
        raise InputError(f"benchmark {name} holds no samples: check its data below the data root")
    number, first = _first_sample(name, benchmark, min(count, TRIED))
    check_sample(first, f"sample {number} of benchmark {name}")


def _first_sample(name: str, benchmark: Any, tried: int) -> tuple[int, Any]:
    """(number, sample) of the first sample that can be read. The runner records broken samples, but a class that gives
    none of its first ones is an error."""
    errors = []
    for number in range(tried):
        try:
            sample = benchmark[number]
            _ = isinstance(sample, Mapping) and [sample.get(key) for key in VISUALS]  # some classes load pictures here
            return number, sample
        except FAULTS as error:  # a user's class may raise anything
            errors.append(error)
    if isinstance(errors[0], InputError):
        raise errors[0]
    at = _at(errors[0], modules_of(type(benchmark)))
    raise InputError(f"benchmark {name} fails for its first {tried} samples{at}") from errors[0]


def _at(error: BaseException, modules: Collection[str]) -> str:
    """The end of a message on an error in a user's code: " (file.py:line): KeyError: ...", as far as it is known."""
    at = place(error, modules)
    return f"{f' ({at})' if at else ''}: {fault_of(error)}"


def _check_name(name: Any) -> None:
    """Raise InputError unless a benchmark's name can name a folder, because its results go to OUTPUT/name."""
    if not isinstance(name, str):
        raise InputError(f"a benchmark has a name of type {type(name).__name__}: use a str")
    fits = 0 < len(name.encode("utf-8", "replace")) <= _LONGEST and name == name.strip() and name.isprintable()
    if not fits or name.startswith(".") or any(sign in name for sign in "/\\:"):
        raise InputError(
            f"a benchmark is called {brief(name)}, which cannot name the folder of its results: use up to {_LONGEST} "
            "letters, digits, '-', '_' and '.', not beginning with '.'"
        )


def _short(name: str) -> str:
    """A name that can name a folder: the class of "path/to/file.py:Class", any other name as it is."""
    path, _, cls = name.rpartition(":")
    return cls if path.endswith(".py") else name
