"""The text of cuda/tables.h, from quant-tables/."""

import pathlib

HERE = pathlib.Path(__file__).resolve().parent
TABLES = HERE.parent / "quant-tables"


def rows(name):
    lines = (TABLES / name).read_text().splitlines()
    return [line.split() for line in lines if not line.startswith("#")]


def array(kind, name, items):
    lines, line = [], "   "
    for item in items:
        if len(line) + len(item) > 117:
            lines.append(line)
            line = "   "
        line += f" {item},"
    return "\n".join([f"__device__ const {kind} {name}[{len(items)}] = {{", *lines, line, "};"])


def text():
    values = {row[0]: [f"{v}.0f" for v in row[1:]] for row in rows("kvalues.txt")}
    runs = rows("mxfp4_exponents.txt")
    parts = [
        "// The tables of quant-tables/ that kernels read. Made by build_ptx.py; do not edit.",
        "#pragma once",
        "",
        '#include "device.h"',
        "",
        "// What the codes of IQ4_NL and IQ4_XS stand for.",
        array("float", "IQ4_VALUES", values["iq4_nl"]),
        "",
        "// What the codes of MXFP4 stand for, twice the values of E2M1.",
        array("float", "FP4_VALUES", values["fp4"]),
        "",
        "// The least magnitude of each run, as bits, and the run's E8M0 byte.",
        f"#define MXFP4_RUNS {len(runs)}",
        array("u32", "MXFP4_FIRST", [f"0x{bits}" for bits, _ in runs]),
        "",
        array("u8", "MXFP4_BYTE", [byte for _, byte in runs]),
        "",
    ]
    return "\n".join(parts)
