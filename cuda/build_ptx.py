#!/usr/bin/env python3
"""Compiles cuda/*.cu to cuda/ptx/*.ptx. Needs no GPU and no CUDA toolkit:

    pip install nvidia-cuda-nvrtc-cu12==12.0.76      # and nvidia-cuda-nvcc-cu12==12.0.76 for --ptxas
    cuda/build_ptx.py               writes cuda/tables.h and cuda/ptx/
    cuda/build_ptx.py --check       writes nothing; fails if a committed file is not what would be written
    cuda/build_ptx.py --ptxas sm_90 reports registers, shared memory and spills of every kernel

Version and options are fixed, so that the same sources give the same bytes everywhere. PTX in which a float operation
is approximate, flushes denormals to zero, is fused or leaves its rounding open is refused, whatever it came from.
"""

import argparse
import ctypes
import importlib.util
import pathlib
import re
import subprocess
import sys

import tables

HERE = pathlib.Path(__file__).resolve().parent
VERSION = (12, 0)
OPTIONS = [
    "--gpu-architecture=compute_75",
    "--std=c++17",
    "--fmad=false",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
    f"--include-path={HERE}",
]
# What would round elsewhere, or not as written.
REFUSED = re.compile(
    r"\.ftz|\.approx|\.full|^\s*(?:@\S+\s+)?(?:fma|mad)\.\S*f(?:32|64)|(?:add|sub|mul)\.f(?:32|64)|(?:div|sqrt|rcp)\.f(?:32|64)",
    re.MULTILINE,
)


def package(name):
    """The folder of an installed package of NVIDIA's."""
    spec = importlib.util.find_spec(f"nvidia.{name}") if importlib.util.find_spec("nvidia") else None
    if spec is None:
        sys.exit(f"nvidia.{name} is not installed: pip install nvidia-{name.replace('_', '-')}-cu12==12.0.76")
    return pathlib.Path(spec.submodule_search_locations[0])


class Compiler:
    """NVRTC, through its C interface."""

    def __init__(self):
        folder = package("cuda_nvrtc") / "lib"
        for builtins in folder.glob("libnvrtc-builtins.so*"):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self.library = ctypes.CDLL(str(next(folder.glob("libnvrtc.so*"))))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        if (major.value, minor.value) != VERSION:
            sys.exit(f"NVRTC {major.value}.{minor.value} is installed, {VERSION[0]}.{VERSION[1]} is needed")

    def text(self, program, what):
        size = ctypes.c_size_t()
        getattr(self.library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(self.library, f"nvrtcGet{what}")(program, buffer)
        return buffer.value.decode()

    def compile(self, source):
        program = ctypes.c_void_p()
        text, name = source.read_bytes(), source.name.encode()
        if self.library.nvrtcCreateProgram(ctypes.byref(program), text, name, 0, None, None) != 0:
            sys.exit(f"{source.name}: NVRTC refuses the program")
        options = (ctypes.c_char_p * len(OPTIONS))(*(o.encode() for o in OPTIONS))
        failed = self.library.nvrtcCompileProgram(program, len(OPTIONS), options)
        log = self.text(program, "ProgramLog").strip()
        if log:
            print(log, file=sys.stderr)
        if failed:
            sys.exit(f"{source.name} does not compile")
        return self.text(program, "PTX")


def refuse(name, ptx):
    """Ends the program where the PTX holds an operation that could round differently."""
    found = REFUSED.search(ptx)
    if found:
        line = ptx[: found.start()].count("\n") + 1
        sys.exit(f"{name}:{line}: `{ptx.splitlines()[line - 1].strip()}` is not rounded as the CPU rounds")


def report(path, gpu):
    """Prints what ptxas says about every kernel, one line each."""
    ptxas = package("cuda_nvcc") / "bin" / "ptxas"
    command = [ptxas, "-v", f"-arch={gpu}", path, "-o", "/dev/null"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    for name, facts in re.findall(r"Compiling entry function '(\w+)'.*\n((?:(?!.*Compiling).*\n?)*)", said):
        counts = []
        for pattern in [r"Used (\d+) reg", r"(\d+) bytes smem", r"(\d+) bytes stack", r"(\d+) bytes spill stores"]:
            found = re.search(pattern, facts)
            counts.append(int(found[1]) if found else 0)
        print("{:26} {:4} registers {:6} shared {:5} stack {:5} spilled".format(name, *counts))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files, write nothing")
    parser.add_argument("--ptxas", metavar="GPU", help="report registers and spills for a GPU such as sm_90")
    parser.add_argument("modules", nargs="*", help="names of modules; all if none is given")
    options = parser.parse_args()
    stale = []

    def keep(path, text):
        if not options.check:
            path.write_text(text)
        elif path.read_text() != text:
            stale.append(str(path.relative_to(HERE.parent)))

    keep(HERE / "tables.h", tables.text())
    compiler = Compiler()
    for source in sorted(HERE.glob("*.cu")):
        if options.modules and source.stem not in options.modules:
            continue
        path = HERE / "ptx" / f"{source.stem}.ptx"
        ptx = compiler.compile(source)
        refuse(path.name, ptx)
        keep(path, ptx)
        if options.ptxas:
            report(path, options.ptxas)
    if stale:
        sys.exit(f"not what the sources give: {', '.join(stale)}; run cuda/build_ptx.py")


if __name__ == "__main__":
    main()
