"""Short hashes of large things: a model's weights, its processor, files of a checkpoint, pictures and videos of a run.

Two things with the same hash are treated as the same.
"""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import torch

BLOCK = 64 * 2**20  # bytes of a file that are hashed by one thread
_PIECE = 2**20  # bytes that a thread reads at a time
_SAMPLES, _SAMPLE = 4, 16 * 2**10  # pieces of a large picture or video that are hashed, and the bytes of each
_AT_ONCE = 4096  # files that are queued for threads at a time
_THREADS = min(32, 4 * (os.cpu_count() or 1))
_PROCESSING = (  # settings of a picture's or a video's processor that decide what the model sees
    *("size", "patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std", "rescale_factor"),
    *("min_patches", "max_patches", "crop_to_patches", "resample", "do_resize", "do_rescale", "do_normalize"),
)
_SIDES = ("shortest_edge", "longest_edge", "height", "width")


def fingerprint(model: torch.nn.Module) -> str:
    """16 hex digits from some values of every parameter: the same folder with other weights gets another fingerprint.

    It depends on the parameters' names and on their dtype's rounding: compare only models that were loaded in the same
    dtype, and before an adapter is attached. Under ZeRO-3 every process must call it, because each has a shard of every
    parameter.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        with _whole(parameter):
            flat = parameter.detach().flatten()
            step = max(flat.numel() // 64, 1)
            digest.update(name.encode() + flat[::step].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def processor_marks(processor: Any) -> dict[str, str]:
    """16 hex digits each for a processor's chat template and vocabulary ("processor"), its settings for pictures
    ("image_processor") and for videos ("video_processor")."""
    tokenizer = processor.tokenizer
    words = [str(processor.chat_template), _vocabulary_mark(tokenizer, len(tokenizer))]
    said: dict[str, list] = {"processor": [*words, getattr(processor, "image_seq_length", None)]}
    for name in ("image_processor", "video_processor"):
        said[name] = [_plain(getattr(getattr(processor, name), setting, None)) for setting in _PROCESSING]
    return {name: hashlib.sha256(json.dumps(own, default=str).encode()).hexdigest()[:16] for name, own in said.items()}


@functools.lru_cache(maxsize=4)
def _vocabulary_mark(tokenizer: Any, size: int) -> str:
    """A hash of a tokenizer's vocabulary. size: how many tokens it has, so that the cache notices added ones."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """A setting in a form for JSON. A size is a dict or a SizeDict (not a dict), depending on transformers' release."""
    return [value.get(side) for side in _SIDES] if hasattr(value, "get") else value


def _whole(parameter: torch.nn.Parameter):
    """Context in which the parameter has all its values, even if ZeRO-3 has sharded it."""
    if not hasattr(parameter, "ds_id"):
        return contextlib.nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters([parameter])


def file_digests(files: Sequence[Path]) -> list[str]:
    """For every file the sha256, in hex digits, of the sha256s of its blocks of 64 MiB; all bytes count.

    Blocks are hashed in parallel, at about 1 GB/s per core, so that the disk is the limit for a large file.
    """
    digests = [hashlib.sha256() for _ in files]
    blocks = [
        (number, file, start)
        for number, file in enumerate(files)
        for start in range(0, max(file.stat().st_size, 1), BLOCK)
    ]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for (number, _, _), digest in zip(blocks, pool.map(_block_digest, blocks)):
            digests[number].update(digest)
    return [digest.hexdigest() for digest in digests]


def _block_digest(block: tuple[int, Path, int]) -> bytes:
    _, path, start = block
    digest, buffer, left = hashlib.sha256(), bytearray(_PIECE), BLOCK
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while left and (count := file.readinto(memoryview(buffer)[: min(_PIECE, left)])):
            digest.update(memoryview(buffer)[:count])
            left -= count
    return digest.digest()


def media_marks(paths: Sequence[str]) -> Iterator[str]:
    """For every picture or video 16 hex digits from its size and content: all of it up to 64 KiB, else four pieces of
    16 KiB, including the first and the last. Times do not count: a copy has the same mark.

    Raises:
        OSError: a file cannot be read.
    """
    left = iter(paths)
    with ThreadPoolExecutor(_THREADS) as pool:
        while part := list(islice(left, _AT_ONCE)):
            yield from pool.map(_media_mark, part)


def _media_mark(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(str(size).encode())
        if size <= _SAMPLES * _SAMPLE:
            digest.update(file.read())
        else:
            for number in range(_SAMPLES):
                file.seek(number * (size - _SAMPLE) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:16]
