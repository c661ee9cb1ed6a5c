"""Reads from a kernel's last IR before machine code the memory planned, loops over single numbers, and transfers.

This is the text that hivmc receives. A buffer is written as

    %4 = hivm.hir.pointer_cast(%c28672_i64) : memref<2048xf32, #hivm.address_space<ub>>

with its first byte as a constant. A single number that a scalar unit moves is a memref.load or memref.store. A transfer
to or from a chip's global memory is a call of a function whose name starts with load_gm, store_ub or similar.
"""

import math
import re
from dataclasses import dataclass

BITS = {"i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "f16": 16, "bf16": 16, "f32": 32, "index": 64}
# The compiler's names of memories, with ours.
SPACES = {"ub": "ub", "cbuf": "l1", "ca": "l0", "cb": "l0", "cc": "l0c"}
BUFFER = re.compile(r"pointer_cast\(([^)]*)\) : memref<([^,>]+), #hivm\.address_space<(\w+)>")
LOOP = re.compile(r"scf\.for (%\w+) = (\S+) to (\S+) step (\S+)")
OWN = 3  # arguments that the compiler adds, which come first
SINGLE = re.compile(r"= memref\.load |^memref\.store ")


@dataclass(frozen=True)
class Loop:
    """A loop of the IR: its indentation, its counter, and its bounds as in the text."""

    depth: int
    counter: str
    bounds: str


def sizes(ir: str) -> dict[str, int]:
    """The chip's properties from the head of the IR: memories (UB_SIZE and so on) in bits, and counts of cores."""
    return {name: int(number) for name, number in re.findall(r'dl_entry<"([A-Z0-9_]+)", (\d+) : i32>', ir)}


def memory(ir: str) -> dict[str, int]:
    """Bytes of each memory that the plan takes, up to the end of its last buffer. A double buffer has two addresses."""
    constants = {name: int(value) for name, value in re.findall(r"%(\S+) = arith\.constant (-?\d+) : i64", ir)}
    ends: dict[str, int] = {}
    for offsets, shape, space in BUFFER.findall(ir):
        *lengths, kind = shape.split("x")
        name, last = SPACES[space], max(constants[offset.strip(" %")] for offset in offsets.split(","))
        ends[name] = max(ends.get(name, 0), last + math.prod(map(int, lengths)) * BITS[kind] // 8)
    return ends


def singles(ir: str) -> list[str]:
    """Operations that move single numbers in a loop over the numbers of a tile.

    A program's own loops (over tasks, over members of a group, over rows) may read one number per iteration, such as an
    index; their bounds are arguments, or numbers that were read. The compiler's loops over the numbers of a tile have
    constant bounds. Single numbers read or written in a vector core's buffer count in any loop and outside of loops.
    """
    found: list[str] = []
    loops: list[Loop] = []
    for line in ir.splitlines():
        text, depth = line.strip(), len(line) - len(line.lstrip())
        while loops and depth <= loops[-1].depth and text.startswith("}"):
            loops.pop()
        loop = LOOP.search(text)
        if loop:
            loops.append(Loop(depth, loop[1], " ".join(loop.groups()[1:])))
        elif SINGLE.search(text):
            over_numbers = [loop.bounds for loop in loops if re.fullmatch(r"%c\d+\S* %c\d+\S* %c\d+\S*", loop.bounds)]
            if over_numbers or "address_space<ub>" in text:
                found.append(f"{text} in {over_numbers}")
    return found


def moves(ir: str) -> list[tuple[int, bool]]:
    """(argument, whether the transfer is cut) of each transfer between an argument's memory and a core.

    Arguments are counted as in the kernel's source. If the compiler understands a mask as "up to the end", it makes a
    memref.subview of the remaining size: the transfer is cut. If not, it moves the whole tile, even past the end, and
    applies the mask afterwards.
    """
    made: dict[str, tuple[str, str]] = {}  # another region may reuse a name, so lines are read in order
    found = []
    for line in ir.splitlines():
        for name, how, source in re.findall(r"(%[\w#]+) = memref\.(cast|subview|\w+_cast|\w+_shape) (%[\w#]+)", line):
            made[name] = how, source
        for operands in re.findall(r"call @(?:load|store|copy|nd2nz|fixpipe)\w*\(([^)]*)\)", line):
            for name in operands.split(", "):
                cut = False
                while name in made:
                    how, name = made[name]
                    cut |= how == "subview"
                argument = re.fullmatch(r"%arg(\d+)", name)
                if argument and int(argument[1]) >= OWN:
                    found.append((int(argument[1]) - OWN, cut))
    return found
