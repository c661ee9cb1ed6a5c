"""What a benchmark has written before: a run that was cut off goes on in the same file."""

import json
from pathlib import Path

from ppe_npu.errors import InputError


def earlier(output: str | None, facts: dict, rows: str) -> dict:
    """What is in the output already, if it was measured under the same conditions; else these facts and no rows.

    Args:
        rows: the key under which the rows stand.

    Raises:
        InputError: it was measured under others.
    """
    if output is None or not Path(output).is_file():
        return {"facts": facts, rows: {}}
    found = json.loads(Path(output).read_text())
    if found.get("facts") != facts:
        raise InputError(f"output {output} was measured on another machine or by other settings: name another file")
    return found
