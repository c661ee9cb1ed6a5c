"""`ppe-npu explore`: serves a web page that shows what a compression does."""

from __future__ import annotations

import argparse
import socket
import threading
from typing import Any

from ppe_npu.backends import device as devices
from ppe_npu.checkpoints.loading import load_model, quiet_transformers
from ppe_npu.cli import common
from ppe_npu.compat import set_pixels
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.demo import tiny
from ppe_npu.errors import InputError, first_line, shown
from ppe_npu.explorer.groups import Explorer, found_model
from ppe_npu.utils.escape import printable
from ppe_npu.utils.optional import optional

_FRAMES = 8  # frames of a video, by default
_TOKENS = 300  # most tokens of a picture for the embedded model, which was made for pictures of 36 tokens


def run_explore(args: argparse.Namespace) -> int:
    """Run the command until Ctrl-C. The options that can be checked early are, before the weights are read."""
    optional("gradio", "ppe-npu explore", "ppe-npu[app]")
    if args.port is not None and not 0 < args.port < 2**16:
        raise InputError(f"--port {args.port} is not a port: give one from 1 to 65535")
    host = _listening(args.host, args.port)
    if args.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens {args.max_new_tokens} must be at least 1")
    device = devices.resolve(args.device)
    quiet_transformers()
    explorer, about = _explorer(args, device)
    from ppe_npu.explorer.page import serve

    page, address = serve(explorer, about, host, args.port)
    print(f"{about}\nopen {address} (Ctrl-C stops it)".replace("`", ""), flush=True)
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)
    return 0


def _listening(host: str, port: int | None) -> str:
    """The host as part of a URL (an IPv6 address in brackets), after a test that it can be listened on. The test comes
    before a model is read, and because Gradio would try an invalid name for minutes, on a hundred ports."""
    name = host.strip("[]") or "127.0.0.1"
    try:
        family, _, _, _, place = socket.getaddrinfo(name, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        asked = f"--host {shown(host)}{f' --port {port}' if port else ''}"
        raise InputError(f"{asked} cannot be listened on ({why}): name another") from error
    return f"[{name}]" if ":" in name else name


def _explorer(args: argparse.Namespace, device: Any) -> tuple[Explorer, str]:
    """(explorer, a line about its model): the named model, else one that an earlier command left, else a model with
    random weights, which shows groups of features but no answers."""
    name = args.model or found_model()
    frames = _FRAMES if args.fps is None and args.nframes is None else args.nframes
    sampling = VideoSampling(args.fps, frames, args.min_pixels, args.max_pixels)
    if name is None and (args.base, args.dtype) != (None, "fp32"):
        raise InputError("--base and --dtype need a model, and none was named or found here: name one with --model")
    if name is None:
        processor, model = tiny.build_processor(), tiny.build_model(seed=0).eval().to(device)
        about = "No model was named, and neither demo nor train has left one here: groups come from the features of a "
        about += "tiny model with random weights, which gives no answers."
    else:
        found = common.checkpoint(args, name)
        processor = common.processor(found, args.min_pixels, args.max_pixels)
        model = found.load(device, args.dtype, load_model)
        about = f"The model is {printable(str(name))}."
        if hasattr(model.config, "pvc"):
            raise InputError(
                f"--model {printable(str(name))} has PVC's modules, which treat pictures as videos: use eval"
            )
    maker = processor.image_processor
    least, most = args.min_pixels or maker.size["shortest_edge"], args.max_pixels or maker.size["longest_edge"]
    if (maker.patch_size, maker.merge_size) == (tiny.PATCH, tiny.MERGE) and args.max_pixels is None:
        most = max(_TOKENS * (tiny.PATCH * tiny.MERGE) ** 2, least)
        about += f" It was made for scenes of {tiny.VISUAL_TOKENS} tokens; other pictures have up to {_TOKENS} here."
    set_pixels(maker, least, most)
    sampling = VideoSampling(sampling.fps, sampling.nframes, least, most)
    return Explorer(model, processor, sampling, name is not None, args.max_new_tokens), about
