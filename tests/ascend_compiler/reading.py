"""What the last IR before machine code says of a kernel: memory planned, loops over single numbers, what is moved.

It is the text that hivmc is handed. A buffer stands there as

    %4 = hivm.hir.pointer_cast(%c28672_i64) : memref<2048xf32, #hivm.address_space<ub>>

with its first byte as a constant; a single number that a scalar unit moves is a memref.load or memref.store; what is
moved to and from a chip's global memory is a call of a function whose name starts with load_gm, store_ub or the like.
"""

import math
import re
from dataclasses import dataclass

BITS = {"i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "f16": 16, "bf16": 16, "f32": 32, "index": 64}
# The compiler's names of memories, and ours.
SPACES = {"ub": "ub", "cbuf": "l1", "ca": "l0", "cb": "l0", "cc": "l0c"}
BUFFER = re.compile(r"pointer_cast\(([^)]*)\) : memref<([^,>]+), #hivm\.address_space<(\w+)>")
LOOP = re.compile(r"scf\.for (%\w+) = (\S+) to (\S+) step (\S+)")
OWN = 3  # arguments of the compiler's own, which come first
SINGLE = re.compile(r"= memref\.load |^memref\.store ")


@dataclass(frozen=True)
class Loop:
    """A loop of the IR: where its body is indented to, its counter, and its bounds as the text has them."""

    depth: int
    counter: str
    bounds: str


def sizes(ir: str) -> dict[str, int]:
    """The chip's own numbers, as the IR's head states them: UB_SIZE and its like in bits, counts of cores."""
    return {name: int(number) for name, number in re.findall(r'dl_entry<"([A-Z0-9_]+)", (\d+) : i32>', ir)}


def memory(ir: str) -> dict[str, int]:
    """Bytes that the plan takes of each memory: up to the end of the buffer that ends last. One with a twin, which is
    filled while it is worked on, has two addresses."""
    constants = {name: int(value) for name, value in re.findall(r"%(\S+) = arith\.constant (-?\d+) : i64", ir)}
    ends: dict[str, int] = {}
    for offsets, shape, space in BUFFER.findall(ir):
        *lengths, kind = shape.split("x")
        name, last = SPACES[space], max(constants[offset.strip(" %")] for offset in offsets.split(","))
        ends[name] = max(ends.get(name, 0), last + math.prod(map(int, lengths)) * BITS[kind] // 8)
    return ends


def singles(ir: str) -> list[str]:
    """Numbers that are moved one by one in a loop over numbers: in one that only counts through a tile.

    A program's own loops (over tasks, over members of a group, over rows) may read a number a turn, which says where
    to go; their bounds are arguments, or what was read. A loop of the compiler's over the numbers of a tile has bounds
    that are constants. Whatever is read or written in the buffer of a vector core one by one counts, too.
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
    """(argument, whether it is cut) of each transfer between an argument's memory and a core.

    The argument is counted as in the kernel's source. A mask that the compiler understood as "up to the end" becomes a
    memref.subview of the size that is left: the transfer is cut. Where it did not, everything is moved, past the end,
    too, and the mask is applied to what has come.
    """
    made: dict[str, tuple[str, str]] = {}  # a name may be used again in another region, so line by line
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
