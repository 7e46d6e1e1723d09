"""The reader of compiled kernels that benchmarks/roofline_gpu.py counts instructions with."""

from __future__ import annotations

from .test_scale import script

SASS = script("_sass")


def listing(*lines: str) -> str:
    """As nvdisasm prints it: labels, and instructions behind their address."""
    found, at = [], 0
    for line in lines:
        if line.endswith(":"):
            found.append(line)
        else:
            found.append(f"        /*{at:04x}*/                   {line} ;")
            at += 16
    return "\n".join(found)


def test_instructions_belong_to_the_innermost_part_of_an_outermost_loop() -> None:
    many = ["FADD R1, R2, R3"] * 50
    text = listing(
        "MOV R1, R2",
        ".L_x_1:",
        "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR16], R24",
        "@!P0 BRA `(.L_x_3)",
        *many,
        "@!P1 BRA `(.L_x_3)",
        *many,
        "FMUL R1, R2, R3",
        ".L_x_3:",
        "@P2 FFMA R1, R2, R3, R4",
        "@!P3 BRA `(.L_x_4)",
        "REDG.E.ADD.F32 desc[UR4][R4.64], R5",
        ".L_x_4:",
        ".L_x_5:",
        "MUFU.EX2 R1, R2",
        "@P4 BRA `(.L_x_5)",
        "@P5 BRA `(.L_x_1)",
        ".L_x_6:",
        "FADD R1, R2, R3",
        "@P5 BRA `(.L_x_6)",
        "EXIT",
    )
    (loop,) = SASS.loops(text, "HGMMA")
    assert loop.always == {"HGMMA.64x128x16.F32.BF16": 1, "BRA": 3, "FFMA": 1, "REDG": 1}
    assert loop.skipped == [{"FADD": 50, "BRA": 1}, {"FADD": 50, "FMUL": 1}]
    assert loop.within == [{"MUFU": 1, "BRA": 1}]


def test_what_has_no_such_loop_gives_none() -> None:
    assert SASS.loops(listing(".L_x_1:", "FADD R1, R2, R3", "@P0 BRA `(.L_x_1)", "EXIT"), "HGMMA") == []
