"""Random real-mode programs, here and under QEMU's TCG: the same ROM, and what it prints on the serial port.

The host's processor can't run real mode for us, so a second implementation judges. Run by hand from the top
of the repository (a minute; it needs gcc and qemu-system-x86):

    python -m tests.judges.realmode_programs --roms 5 --seed 1

A ROM of 64 KiB stands in for the BIOS. It runs a few hundred cases: fresh memory, random registers and
flags, one to three instructions; then it prints a hash of registers, segments, flags, the exception if one
came, and the memory in reach. Flags that the architecture leaves undefined are left out. TCG checks no
segment limits in real mode, so no access crosses offset 0xffff. The exit status is 1 when lines differ.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CASES: Final = 250
_LIMIT_S: Final = 90
_CF, _PF, _AF, _ZF, _SF, _OF = 1, 4, 0x10, 0x40, 0x80, 0x800
_ALL: Final = 0xCD5 | 0x200
"""The six arithmetic flags, DF and IF."""
_EDGES: Final = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_MEMORY: Final = (
    *("[bx+si+{d}]", "[bx+di]", "[bp+si+{d}]", "[bp+di]", "[si]", "[di+{d}]", "[bx+{d}]", "[bp+{d}]"),
    *("[{d}]", "[ebx+ecx*2+{d}]", "[esi+{d}]", "[edi+ebp]", "[ebp+{d}]"),
)
_REGISTERS: Final = {
    8: ("al", "ah", "bl", "bh", "cl", "ch", "dl", "dh"),
    16: ("ax", "bx", "cx", "dx", "si", "di", "bp"),
    32: ("eax", "ebx", "ecx", "edx", "esi", "edi", "ebp"),
}
_OVERRIDES: Final = ("", "", "", "es:", "ss:", "gs:", "cs:")


@dataclass(frozen=True)
class Form:
    """An instruction with places to fill in, and the flags that it leaves undefined.

    ``{r}`` a register, ``{m}`` a memory operand, ``{p}`` one without a size, ``{e}`` a register or memory,
    ``{i}`` an immediate; all of one size.
    """

    text: str
    undefined: int = 0
    sizes: Sequence[int] = (8, 16, 32)


def _plain(text: str) -> Form:
    return Form(text, 0, (16,))


_SHIFT: Final = _AF | _OF
FORMS: Final = (
    *(Form(f"{name} {{e}}, {{r}}") for name in ("add", "adc", "sub", "sbb", "cmp", "xchg", "mov")),
    *(Form(f"{name} {{r}}, {{m}}") for name in ("add", "adc", "sub", "sbb", "cmp", "mov")),
    *(Form(f"{name} {{e}}, {{r}}", _AF) for name in ("and", "or", "xor", "test")),
    *(Form(f"{name} {{e}}, {{i}}") for name in ("add", "sub", "cmp", "mov")),
    *(Form(f"{name} {{e}}") for name in ("inc", "dec", "neg", "not")),
    *(Form(f"{name} {{e}}, cl", _SHIFT | _CF) for name in ("shl", "shr", "sar")),
    *(Form(f"{name} {{e}}, 1", _AF) for name in ("shl", "shr", "sar")),
    *(Form(f"{name} {{e}}, 1") for name in ("rol", "ror", "rcl", "rcr")),
    *(Form(f"{name} {{e}}, cl", _OF) for name in ("rol", "ror", "rcl", "rcr")),
    *(Form(f"{name} {{e}}", _SF | _ZF | _AF | _PF) for name in ("mul", "imul")),
    *(Form(f"{name} {{e}}", _CF | _OF | _SF | _ZF | _AF | _PF) for name in ("div", "idiv")),
    *(Form(f"{name} {{r}}, {{r}}", _OF | _SF | _AF | _PF, (16, 32)) for name in ("bt", "bts", "btr", "btc")),
    Form("aaa", _OF | _SF | _ZF | _PF, (16,)),
    Form("aas", _OF | _SF | _ZF | _PF, (16,)),
    Form("daa", _OF, (16,)),
    Form("das", _OF, (16,)),
    Form("aam {small}", _OF | _AF | _CF, (16,)),
    Form("aad {small}", _OF | _AF | _CF, (16,)),
    *(_plain(text) for text in ("cbw", "cwd", "cwde", "cdq", "lahf", "sahf", "cmc", "stc", "std", "clc")),
    *(_plain(text) for text in ("xlat", "xlat byte ptr es:[bx]", ".byte 0xd6", "into", "int3", "int 0x40")),
    *(Form(f"{{rep}} {name}", 0, (16,)) for name in ("movsb", "movsw", "movsd", "stosb", "stosw", "stosd")),
    *(Form(f"{{rep}} {name}", 0, (16,)) for name in ("lodsb", "lodsw", "lodsd")),
    *(Form(f"{{repe}} {name}", 0, (16,)) for name in ("cmpsb", "cmpsw", "cmpsd", "scasb", "scasw", "scasd")),
    *(Form(f".byte 0x67; rep {name}", 0, (16,)) for name in ("movsb", "stosw", "lodsd")),
    *(Form(f"push {{e}}; {text}", 0, (16, 32)) for text in ("pop {r}", "pop {m}")),
    *(_plain(text) for text in ("pusha", "pushad", "popa", "popad", "pushf; pop bx", "push {i}; popf")),
    *(Form(f"enter {{small}}, {level}{text}", 0, (16,)) for level in (0, 1, 3) for text in ("", "; leave")),
    *(Form(f"push {segment}; pop ax", 0, (16,)) for segment in ("cs", "ds", "es", "ss", "gs")),
    *(Form(f"mov {{e}}, {segment}", 0, (16,)) for segment in ("cs", "ds", "es", "ss", "gs")),
    *(Form(f"mov es, dx; mov {{r}}, es:{where}") for where in ("[si]", "[bx+di]")),
    *(Form(f"{name} {{r}}, {{p}}", 0, (16, 32)) for name in ("les", "lgs", "bound", "lea")),
    *(Form(f"movzx e{name}, {{e}}", 0, (8, 16)) for name in ("ax", "si")),
    *(Form(f"movsx e{name}, {{e}}", 0, (8, 16)) for name in ("dx", "bp")),
    *(Form(f"set{c} {{e}}", 0, (8,)) for c in ("o", "b", "e", "be", "s", "p", "l", "le")),
    *(_plain(f"j{c} 1f; inc edx; 1: dec si") for c in ("o", "b", "e", "be", "s", "p", "l", "g", "cxz")),
    *(Form(f"1: inc edx; {name} 1b", 0, (16,)) for name in ("loop", "loope", "loopne")),
    Form("call 1f; inc dx; jmp 2f; 1: inc si; ret; 2:", 0, (16,)),
    Form("call 1f; inc dx; jmp 2f; 1: inc si; ret 4; 2:", 0, (16,)),
    Form("push cs; call 1f; inc dx; jmp 2f; 1: inc si; retf; 2:", 0, (16,)),
    Form("lcall 0xf000, offset 1f; jmp 2f; 1: inc si; retf 6; 2:", 0, (16,)),
    Form("pushf; lcall 0xf000, offset 1f; jmp 2f; 1: inc si; iret; 2:", 0, (16,)),
    Form("ljmp 0xf000, offset 1f; inc edx; 1:", 0, (16,)),
    Form("mov ax, offset 1f; jmp ax; inc edx; 1:", 0, (16,)),
    Form("mov eax, offset 1f; .byte 0x66; call ax; jmp 2f; 1: .byte 0x66; ret; 2:", 0, (16,)),
    Form("xadd {e}, {r}"),
    Form("cmpxchg {e}, {r}"),
    Form("bswap {r}", 0, (32,)),
    *(Form(f"{name} {{r}}, {{m}}", _CF | _OF | _SF | _AF | _PF, (16, 32)) for name in ("bsf", "bsr")),
    Form("imul {r}, {m}, {i}", _SF | _ZF | _AF | _PF, (16, 32)),
    *(Form(f"{name} {{e}}, {{r}}, 3", _AF | _OF, (16, 32)) for name in ("shld", "shrd")),
    Form("lock add {m}, {r}"),
    Form("hlt", 0, ()),
)  # fmt: skip


def fill(form: Form, draw: random.Random) -> str:
    """One instruction of a form, as the assembler takes it."""
    size = draw.choice(form.sizes)
    word = {8: "byte", 16: "word", 32: "dword"}[size]

    def memory() -> str:
        place = draw.choice(_MEMORY).format(d=4 * draw.randrange(0, 24))
        return f"{word} ptr {draw.choice(_OVERRIDES)}{place}"

    def register() -> str:
        return draw.choice(_REGISTERS[size])

    fields = {
        "r": register,
        "m": memory,
        "p": lambda: memory().split("ptr ")[1],
        "e": lambda: draw.choice((register, memory))(),
        "i": lambda: str(draw.choice((*_EDGES, draw.getrandbits(32))) & ((1 << size) - 1)),
        "small": lambda: str(4 * draw.randrange(0, 8)),
        "rep": lambda: draw.choice(("", "rep")),
        "repe": lambda: draw.choice(("", "repe", "repne")),
    }
    return re.sub(r"\{(\w+)\}", lambda match: fields[match.group(1)](), form.text)


def case(draw: random.Random) -> str:
    """Assembly of a case: registers, flags, instructions."""
    forms = [draw.choice([form for form in FORMS if form.sizes]) for _ in range(draw.choice((1, 1, 2, 3)))]
    # What an undefined flag leads to is undefined too.
    kept = next((at + 1 for at, form in enumerate(forms) if form.undefined), len(forms))
    forms = forms[:kept]
    lines = [fill(form, draw) for form in forms]
    # 32-bit addresses do not wrap at 64 KiB: their sums have to stay inside.
    if wide := bool(re.search(r"\[e|0x67", "".join(lines))):
        forms, lines = forms[:1], lines[:1]
    mask = _ALL & ~forms[-1].undefined
    address = lambda: 4 * draw.randrange(0, 0x40) + draw.choice((0, 0, 0, 0xFF00))  # noqa: E731
    values = {
        **{name: draw.choice((*_EDGES, draw.getrandbits(32))) for name in ("eax", "edx")},
        **{name: 4 * draw.randrange(0, 0x40) for name in ("ebp", "edi")},
        **{name: address() for name in ("ebx", "esi")},
        "ecx": draw.randrange(0, 9),
    }
    if wide:
        values |= {name: values[name] & 0xFF for name in ("ebx", "esi")}
    flags = 2 | draw.getrandbits(12) & (_CF | _PF | _AF | _ZF | _SF | _OF)
    loads = "\n    ".join(f"mov {name}, {value:#x}" for name, value in values.items())
    body = "\n    ".join(lines)
    return f"""
    mov word ptr fs:[MASK], {mask:#x}
    mov word ptr fs:[RESUME], offset 9f
    call fresh
    mov sp, {draw.choice((0, 0x100, 0x1000))}
    push {flags:#x}
    popf
    {loads}
    {body}
9:  jmp 8f
8:  call_save
"""


_START: Final = """
.intel_syntax noprefix
.code16
MASK = 0x80
RESUME = 0x82
VECTOR = 0x84
.macro call_save
    mov fs:[0], eax
    mov fs:[4], ebx
    mov fs:[8], ecx
    mov fs:[12], edx
    mov fs:[16], esi
    mov fs:[20], edi
    mov fs:[24], ebp
    mov fs:[28], esp
    mov fs:[32], ds
    mov fs:[34], es
    mov fs:[36], ss
    mov fs:[38], gs
    mov ax, 0x5000
    mov ss, ax
    mov esp, 0x8000
    call report
.endm
start:
    cli
    mov ax, 0x4000
    mov fs, ax
    mov ax, 0x5000
    mov ss, ax
    mov esp, 0x8000
    xor ax, ax
    mov es, ax
    xor di, di
    mov cx, 256
    mov bx, offset handlers
1:  mov es:[di], bx
    mov word ptr es:[di+2], 0xf000
    add di, 4
    add bx, 8
    loop 1b
"""
_END: Final = """
    mov dx, 0x3f8
    mov al, '.'
    out dx, al
    mov al, '\\n'
    out dx, al
    mov dx, 0x604
    mov ax, 0x2000
    out dx, ax
    mov al, 0xfe
    out 0x64, al
1:  hlt
    jmp 1b

// Segments and memory as every case finds them. Uses all registers; SS:SP are the case's afterwards.
fresh:
    pop word ptr fs:[0x90]
    cld
    mov bx, 0x1000
2:  mov es, bx
    xor di, di
    mov cx, 0x100
    mov eax, 0x9e3779b9
3:  add eax, 0x3c6ef372
    rol eax, 3
    stosd
    loop 3b
    mov di, 0xfc00
    mov cx, 0x100
4:  add eax, 0x3c6ef372
    rol eax, 3
    stosd
    loop 4b
    add bx, 0x1000
    cmp bx, 0x4000
    jb 2b
    mov ax, 0x1000
    mov ds, ax
    mov ax, 0x2000
    mov es, ax
    mov gs, ax
    mov ax, 0x3000
    mov ss, ax
    mov esp, 0x800
    mov byte ptr fs:[VECTOR], 0xff
    jmp word ptr fs:[0x90]

// Print a hash of what the case left.
report:
    pushf
    pop ax
    and ax, fs:[MASK]
    mov fs:[40], ax
    cld
    mov al, fs:[VECTOR]
    mov fs:[42], al
    mov bp, 0x4000
    mov ds, bp
    xor esi, esi
    mov ecx, 43
    mov ebx, 0x811c9dc5
    call hash
    mov bp, 0x1000
1:  mov ds, bp
    xor esi, esi
    mov ecx, 0x400
    call hash
    mov si, 0xfc00
    mov ecx, 0x400
    call hash
    mov si, 0xf80
    mov ecx, 0x100
    call hash
    add bp, 0x1000
    cmp bp, 0x4000
    jb 1b
    mov cx, 8
    mov dx, 0x3f8
2:  rol ebx, 4
    mov al, bl
    and al, 15
    add al, '0'
    cmp al, '9'
    jbe 3f
    add al, 39
3:  out dx, al
    loop 2b
    mov al, '\\n'
    out dx, al
    ret

hash:
    lodsb
    xor bl, al
    imul ebx, ebx, 0x01000193
    loop hash
    ret

// Vector N: note N and go to the end of the case; 40h counts and returns.
    .balign 8
handlers:
.set number, 0
.rept 256
    .balign 8
.if number == 0x40
    inc bx
    iret
.else
    mov byte ptr fs:[VECTOR], number
    jmp fault
.endif
.set number, number + 1
.endr
fault:
    jmp word ptr fs:[RESUME]

    .org 0xfff0
    .byte 0xea
    .word start, 0xf000
    .org 0xffff
    .byte 0
"""


def build(cases: Sequence[str], folder: Path) -> Path:
    """Assemble a ROM."""
    source, rom = folder / "rom.S", folder / "rom.bin"
    source.write_text(_START + "".join(cases) + _END)
    link = "-Wl,--oformat=binary,--build-id=none,-Ttext=0,-z,noexecstack,-e,start"
    command = ["cc", "-m32", "-nostdlib", "-static", "-no-pie", link, str(source), "-o", str(rom)]
    subprocess.run(command, check=True, capture_output=True)
    return rom


def printed(command: Sequence[str]) -> list[str]:
    """Lines that a machine prints until its ROM is through, or for as long as it may take."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        lines = []
        try:
            for line in process.stdout:
                lines.append(line.decode(errors="replace").strip())
                if lines[-1] == ".":
                    break
        finally:
            process.kill()
    return lines


def ours(rom: Path) -> list[str]:
    """The ROM as firmware of `pc`."""
    command = [sys.executable, "-m", "sublet", "run", "--engine", "translate", "--machine", "pc"]
    words = ["--firmware", str(rom), "--memory", "16M", "--net", "none", "--no-reboot"]
    return printed(["timeout", str(_LIMIT_S), *command, *words, "--boot", "disk"])


def theirs(rom: Path) -> list[str]:
    """The same in QEMU."""
    words = ["-M", "pc", "-accel", "tcg", "-m", "16", "-nodefaults", "-display", "none", "-no-reboot"]
    return printed(
        ["timeout", str(_LIMIT_S), "qemu-system-x86_64", *words, "-serial", "stdio", "-bios", str(rom)]
    )


def compare(seed: int, folder: Path, verbose: bool) -> int:
    """Run one ROM; returns how many cases differ, and prints them."""
    draw = random.Random(seed)
    cases = [case(draw) for _ in range(_CASES)]
    rom = build(cases, folder)
    here, there = ours(rom), theirs(rom)
    if len(there) != _CASES + 1:
        print(f"seed {seed}: QEMU printed {len(there)} lines of {_CASES + 1}")
        return 1
    differing = [at for at in range(_CASES) if at >= len(here) or here[at] != there[at]]
    print(f"seed {seed}: {_CASES - len(differing)} of {_CASES} cases agree", flush=True)
    for at in differing[: 20 if verbose else 3]:
        print(f"--- case {at}{cases[at]}", flush=True)
    return len(differing)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--roms", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbose", action="store_true", help="print more of what differs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        seeds = range(options.seed, options.seed + options.roms)
        differing = sum(compare(seed, Path(directory), options.verbose) for seed in seeds)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
