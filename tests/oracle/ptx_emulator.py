#!/usr/bin/env python3
"""Executes the committed PTX of the CUDA kernels, instruction by instruction, and compares with the host kernels.

    c++ -std=c++17 -O2 -ffp-contract=off -Wno-unknown-pragmas -fPIC -shared cuda/host/kernels.cpp -o libkernels.so
    python tests/oracle/ptx_emulator.py libkernels.so [KERNEL...]

The threads of a CUDA block run in lockstep where they agree and apart where they do not, with barriers, shared memory
and calls, as the PTX manual has it. Where a GPU differs from x86-64 it does as a GPU: every NaN that arithmetic makes
is 0x7fffffff. So a NaN of one may be another NaN of the other, in values and in the scales of blocks, both of which
the program refuses; everything else must be the same. Needs numpy. The host kernels themselves are compared with the CPU by tests/cuda_kernels.rs.
"""

import ctypes
import pathlib
import re
import struct
import sys

import numpy as np

# Data that each kernel is tried on.
SEEDS = 2

PTX = pathlib.Path(__file__).resolve().parents[2] / "cuda" / "ptx"
WIDTH = {"8": 1, "16": 2, "32": 4, "64": 8}
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
NAN32 = np.array([0x7FFFFFFF], np.uint32).view(np.float32)[0]
NAN64 = np.array([0x7FFFFFFFFFFFFFFF], np.uint64).view(np.float64)[0]


class Function:
    """Instructions of an entry or function: (guard, negated, operation, operands), and where labels lead."""

    def __init__(self, name, parameters):
        self.name, self.parameters = name, parameters
        self.code, self.labels, self.shared = [], {}, {}


def parse(text):
    """The functions of a module, and its initialised memory."""
    functions, memory = {}, {}
    text = re.sub(r"//.*", "", text)
    for name, size, values in re.findall(r"^\.global \.align \d+ \.b8 (\w+)\[(\d+)\] = \{([^}]*)\};", text, re.M):
        memory[name] = bytes(int(v) for v in values.split(",")).ljust(int(size), b"\0")
    pattern = r"^(?:\.visible )?\.(?:entry|func)\s*(?:\([^)]*\))?\s*([\w$]+)\s*\(([^)]*)\)\s*([^{;]*)\{(.*?)^\}"
    for name, parameters, _, body in re.findall(pattern, text, re.M | re.S):
        function = Function(name, re.findall(r"([\w$]+)(?:\[\d+\])?\s*(?:,|$)", parameters.strip()))
        body = re.sub(r"\{ *\n|\n *\t*\} *(?=\n)", "\n", body)
        for statement in re.split(r";|(?<=:)\s*\n", body):
            statement = " ".join(statement.split())
            if not statement:
                continue
            shared = re.match(r"\.shared \.align (\d+) \.b8 ([\w$]+)\[(\d+)\]", statement)
            label = re.match(r"(\$\w+):$", statement)
            if shared:
                function.shared[shared[2]] = (int(shared[1]), int(shared[3]))
            elif label:
                function.labels[label[1]] = len(function.code)
            elif not statement.startswith("."):
                guard = re.match(r"@(!?)(%p\d+) ", statement)
                statement = statement[guard.end() :] if guard else statement
                operation, _, rest = statement.partition(" ")
                operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|[^,\s]+", rest)
                function.code.append((guard and guard[2], bool(guard and guard[1]), operation, operands))
        functions[name] = function
    return functions, memory


class Machine:
    """One CUDA block at a time over a flat memory."""

    def __init__(self, text, size):
        self.functions, constants = parse(text)
        self.memory = np.zeros(size, np.uint8)
        self.views = {w: self.memory.view(t) for w, t in UNSIGNED.items()}
        self.free, self.symbols = 256, {}
        for name, data in constants.items():
            self.symbols[name] = self.place(np.frombuffer(data, np.uint8))

    def place(self, array):
        """Copies an array into memory; answers its address."""
        data = array.view(np.uint8).ravel()
        address = self.free
        self.memory[address : address + data.size] = data
        self.free = (address + data.size + 511) // 256 * 256
        return address

    def launch(self, name, grid, threads, arguments):
        entry = self.functions[name]
        base = self.free
        for symbol, (align, size) in entry.shared.items():
            base = (base + align - 1) // align * align
            self.symbols[symbol] = base
            base += size
        self.threads, self.grid = threads, grid
        for block in range(grid):
            self.block = block
            self.memory[self.free : base] = 0xA5  # shared memory holds anything
            parameters = {n: np.tile(np.frombuffer(a, np.uint8), (threads, 1)) for n, a in zip(entry.parameters, arguments)}
            self.execute(entry, np.ones(threads, bool), parameters)

    def execute(self, function, mask, parameters):
        """Runs the threads in `mask` to their end."""
        n = self.threads
        frame = Frame(self, function, parameters, n)
        pc = np.where(mask, 0, 1 << 30)
        waiting = np.zeros(n, bool)
        while True:
            ready = (pc < 1 << 30) & ~waiting
            if not ready.any():
                if not waiting.any():
                    return frame
                waiting[:] = False
                continue
            at = int(pc[ready].min())
            active = ready & (pc == at)
            everyone = bool((active == ready).all())
            while True:
                guard, negated, operation, operands = function.code[at]
                taken = active
                if guard:
                    taken = active & (frame.registers[guard] ^ negated)
                at += 1
                if operation.startswith("bra"):
                    pc[active] = at
                    pc[taken] = function.labels[operands[0]]
                    break
                if operation == "ret":
                    pc[active] = at
                    pc[taken] = 1 << 30
                    break
                if operation.startswith("bar"):
                    pc[active] = at
                    waiting |= taken
                    break
                if taken.any():
                    frame.step(operation, operands, taken)
                if not everyone:
                    pc[active] = at
                    break


class Frame:
    """Registers and parameters of a function's threads."""

    def __init__(self, machine, function, parameters, n):
        self.machine, self.function, self.parameters, self.n = machine, function, parameters, n
        self.registers = {}
        self.all = np.arange(n)

    def kind(self, name):
        prefix = re.match(r"%(rs|rd|r|fd|f|p)\d", name)[1]
        return {"rs": np.uint16, "r": np.uint32, "rd": np.uint64, "f": np.float32, "fd": np.float64, "p": bool}[prefix]

    def get(self, operand, dtype):
        """An operand in all threads, its bits as `dtype`."""
        if operand.startswith("%") and re.match(r"%(rs|rd|r|fd|f|p)\d", operand):
            value = self.registers[operand]
            if value.dtype == dtype:
                return value
            width = np.dtype(dtype).itemsize
            if value.dtype.itemsize == width:
                return value.view(dtype)
            whole = value if value.dtype.kind == "u" else value.view(UNSIGNED[value.dtype.itemsize])
            return whole.astype(UNSIGNED[width]).view(dtype)
        if operand.startswith("0f"):
            return np.full(self.n, struct.unpack(">f", bytes.fromhex(operand[2:]))[0], np.float32).view(dtype)
        if operand.startswith("0d"):
            return np.full(self.n, struct.unpack(">d", bytes.fromhex(operand[2:]))[0], np.float64).view(dtype)
        special = {"%tid.x": self.all, "%ntid.x": self.n, "%ctaid.x": self.machine.block, "%nctaid.x": self.machine.grid}
        if operand in special:
            return np.broadcast_to(np.asarray(special[operand], np.uint32), (self.n,)).copy().view(dtype)
        if operand in self.machine.symbols:
            number = self.machine.symbols[operand]
        else:
            number = int(operand, 0)
        width = np.dtype(dtype).itemsize
        return np.full(self.n, number & (1 << 8 * width) - 1, UNSIGNED[width]).view(dtype)

    def put(self, name, value, mask):
        kind = self.kind(name)
        if value.dtype != kind:
            width = np.dtype(kind).itemsize
            if kind is bool or value.dtype == bool:
                assert kind is bool and value.dtype == bool
            elif value.dtype.itemsize == width:
                value = value.view(kind)
            elif value.dtype.kind == "i":
                value = value.astype(SIGNED[width]).view(kind)
            else:
                value = value.astype(UNSIGNED[width]).view(kind)
        old = self.registers.get(name)
        if old is None:
            self.registers[name] = value.copy()
        else:
            self.registers[name] = np.where(mask, value, old)

    def place(self, operand):
        """Base and offset of `[base+offset]`."""
        base, _, offset = operand[1:-1].partition("+")
        return base, int(offset or 0)

    def step(self, operation, operands, mask):
        parts = operation.split(".")
        name, kind = parts[0], parts[-1]
        if name in ("ld", "st"):
            return self.move(parts, operands, mask)
        if name == "call":
            return self.call(operands, mask)
        if name == "atom":
            address = self.get(operands[1][1:-1], np.uint64)
            for i in np.flatnonzero(mask):
                cell = self.machine.views[8][int(address[i]) // 8 : int(address[i]) // 8 + 1]
                cell[0] = min(cell[0], self.get(operands[2], np.uint64)[i])
            return None
        to, sources = operands[0], operands[1:]
        if name == "cvta":
            return self.put(to, self.get(sources[0], np.uint64), mask)
        if name == "cvt":
            return self.put(to, self.convert(parts, sources[0]), mask)
        if name == "setp":
            return self.put(to, self.compare(parts[1], kind, sources), mask)
        if kind == "pred":
            a = [self.truth(s) for s in sources]
            value = {"and": lambda: a[0] & a[1], "or": lambda: a[0] | a[1], "xor": lambda: a[0] ^ a[1], "not": lambda: ~a[0], "mov": lambda: a[0]}
            return self.put(to, value[name](), mask)
        if name == "selp":
            dtype = self.dtype(kind)
            chosen = np.where(self.registers[sources[2]], self.get(sources[0], dtype), self.get(sources[1], dtype))
            return self.put(to, chosen, mask)
        if kind in ("f32", "f64") and name != "mov":
            return self.put(to, self.real(name, parts, kind, sources), mask)
        return self.put(to, self.whole(name, parts, kind, sources), mask)

    def truth(self, operand):
        return self.registers[operand] if operand in self.registers else np.full(self.n, bool(int(operand)))

    def dtype(self, kind):
        width = WIDTH[kind[1:]]
        if kind[0] == "f":
            return {4: np.float32, 8: np.float64}[width]
        return SIGNED[width] if kind[0] == "s" else UNSIGNED[width]

    def compare(self, relation, kind, sources):
        a, b = (self.get(s, self.dtype(kind)) for s in sources)
        if kind[0] == "f":
            unordered = np.isnan(a) | np.isnan(b)
            if relation in ("num", "nan"):
                return unordered if relation == "nan" else ~unordered
            if relation.endswith("u") and relation != "u":
                return unordered | self.relation(relation[:-1], a, b)
            return ~unordered & self.relation(relation, a, b)
        return self.relation(relation, a, b)

    def relation(self, relation, a, b):
        table = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
        return table[relation](a, b)

    def real(self, name, parts, kind, sources):
        dtype = self.dtype(kind)
        a = [self.get(s, dtype) for s in sources]
        if name == "abs":
            return np.abs(a[0])
        if name == "neg":
            return -a[0]
        if name in ("min", "max"):
            value = (np.fmin if name == "min" else np.fmax)(*a)
        elif "rm" in parts:
            assert name == "add"
            value = round_down(*a)
        else:
            assert "rn" in parts, parts
            table = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "sqrt": np.sqrt}
            value = dtype(1) / a[0] if name == "rcp" else table[name](*a)
        assert value.dtype == dtype
        return np.where(np.isnan(value), NAN32 if dtype is np.float32 else NAN64, value)

    def whole(self, name, parts, kind, sources):
        dtype = self.dtype(kind)
        if name == "prmt":
            return self.permute(sources)
        if name == "bfi":
            a, b, start, length = (self.get(s, np.uint32) for s in sources)
            field = (np.uint32(1) << length) - np.uint32(1) << start
            return b & ~field | a << start & field
        if name in ("shl", "shr"):
            a, count = self.get(sources[0], dtype), self.get(sources[1], np.uint32)
            bits = 8 * a.dtype.itemsize
            within = np.minimum(count, bits - 1).astype(a.dtype)
            value = a << within if name == "shl" else a >> within
            return np.where(count < bits, value, value.dtype.type(0) if kind[0] != "s" else value)
        if parts[1] == "wide":
            wide = {2: 4, 4: 8}[dtype().itemsize]
            a, b = (self.get(s, dtype) for s in sources)
            t = SIGNED[wide] if kind[0] == "s" else UNSIGNED[wide]
            return a.astype(t) * b.astype(t)
        a = [self.get(s, dtype) for s in sources]
        table = {
            "add": lambda: a[0] + a[1],
            "sub": lambda: a[0] - a[1],
            "mul": lambda: a[0] * a[1],
            "mad": lambda: a[0] * a[1] + a[2],
            "div": lambda: a[0] // np.where(a[1] == 0, dtype(1), a[1]),
            "and": lambda: a[0] & a[1],
            "or": lambda: a[0] | a[1],
            "xor": lambda: a[0] ^ a[1],
            "not": lambda: ~a[0],
            "neg": lambda: -a[0],
            "min": lambda: np.minimum(*a),
            "max": lambda: np.maximum(*a),
            "mov": lambda: a[0],
        }
        return table[name]()

    def permute(self, sources):
        a, b, selector = (self.get(s, np.uint32) for s in sources)
        both = np.stack([v >> np.uint32(8 * i) & np.uint32(255) for v in (a, b) for i in range(4)])
        value = np.zeros(self.n, np.uint32)
        for i in range(4):
            nibble = selector >> np.uint32(4 * i) & np.uint32(15)
            byte = both[nibble & np.uint32(7), self.all]
            sign = np.where(byte >> np.uint32(7), np.uint32(255), np.uint32(0))
            value |= np.where(nibble & np.uint32(8), sign, byte) << np.uint32(8 * i)
        return value

    def convert(self, parts, source):
        to, of = parts[-2], parts[-1]
        if of[0] == "f":
            a = self.get(source, self.dtype(of))
            if to[0] == "f":
                return np.trunc(a) if "rzi" in parts else a.astype(self.dtype(to))
            assert (to, parts[1]) == ("s32", "rzi")
            whole = np.trunc(np.nan_to_num(a.astype(np.float64), nan=0.0, posinf=2.0**40, neginf=-(2.0**40)))
            return np.clip(whole, -(2**31), 2**31 - 1).astype(np.int64).astype(np.int32)
        register = self.get(source, UNSIGNED[np.dtype(self.kind(source)).itemsize])
        a = register.astype(UNSIGNED[WIDTH[of[1:]]])
        if of[0] == "s":
            a = a.view(SIGNED[a.dtype.itemsize])
        if to[0] == "f":
            return a.astype(self.dtype(to))
        # Widened by the sign of the source, cut by the target.
        return a.astype(SIGNED[8] if of[0] == "s" else UNSIGNED[8]).astype(UNSIGNED[WIDTH[to[1:]]])

    def move(self, parts, operands, mask):
        space, kind = parts[1], parts[-1]
        loads = parts[0] == "ld"
        registers, place = (operands[0], operands[1]) if loads else (operands[1], operands[0])
        names = re.findall(r"[%\w.]+", registers)
        width, dtype = WIDTH[kind[1:]], self.dtype(kind)
        base, offset = self.place(place)
        for i, name in enumerate(names):
            at = offset + i * width
            if space == "param":
                cells = self.parameters.setdefault(base, np.zeros((self.n, 64), np.uint8))
                if loads:
                    value = np.ascontiguousarray(cells[:, at : at + width]).view(dtype).ravel()
                    self.put(name, value, mask)
                else:
                    value = self.get(name, UNSIGNED[width]).reshape(-1, 1).view(np.uint8)
                    cells[mask, at : at + width] = value[mask]
                continue
            index = (self.get(base, np.uint64).astype(np.int64) + at)[mask]
            assert (index % width == 0).all() and (index >= 256).all() and (index < self.machine.memory.size).all()
            if not loads:
                self.machine.views[width][index // width] = self.get(name, UNSIGNED[width])[mask]
                continue
            value = np.zeros(self.n, UNSIGNED[width])
            value[mask] = self.machine.views[width][index // width]
            self.put(name, value.view(dtype), mask)
        return None

    def call(self, operands, mask):
        results, name, arguments = (operands[0][1:-1].strip(), operands[1], operands[2][1:-1])
        function = self.machine.functions[name]
        parameters = {n: self.parameters[a.strip()] for n, a in zip(function.parameters, arguments.split(","))}
        frame = self.machine.execute(function, mask, parameters)
        cells = self.parameters.setdefault(results, np.zeros((self.n, 64), np.uint8))
        cells[mask] = frame.parameters["func_retval0"][mask]


def round_down(a, b):
    """a + b, rounded toward minus infinity."""
    exact = a.astype(np.float64) + b.astype(np.float64)
    # Of a tiny number and a large one f64 loses the tiny one's sign, which decides.
    lost = np.where((exact == b) & (a < 0), np.nextafter(exact, -np.inf), exact)
    near = lost.astype(np.float32)
    return np.where(near.astype(np.float64) > lost, np.nextafter(near, np.float32(-np.inf)), near)


class HostKernel(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("parameters", ctypes.c_char_p),
        ("run", ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_int, ctypes.POINTER(ctypes.c_void_p))),
    ]


def host_kernels(path):
    library = ctypes.CDLL(path)
    count = ctypes.c_uint32.in_dll(library, "to_gguf_kernel_count").value
    return {k.name.decode(): k for k in (HostKernel * count).in_dll(library, "to_gguf_kernels")}


def aligned(array):
    """A copy at a multiple of 64."""
    room = np.zeros(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype)
    copy[:] = array.ravel()
    return copy


def compare(host, name, grid, threads, arguments):
    """Runs a kernel on both; answers whether every array ends the same."""
    text = next(t for t in (p.read_text() for p in PTX.glob("*.ptx")) if f".entry {name}(" in t)
    machine = Machine(text, 1 << 22)
    bounds = re.search(rf"\.entry {name}\(.*?\.maxntid (\d+)", text, re.S)
    assert int(bounds[1]) == threads
    packed, places, copies, words = [], [], [], []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            place, copy = machine.place(argument), aligned(argument)
            places.append((place, argument.nbytes))
            copies.append(copy)
            packed.append(struct.pack("<Q", place))
            words.append(struct.pack("<Q", copy.ctypes.data))
        else:
            packed.append(argument)
            words.append(argument.ljust(8, b"\0"))
    buffers = [ctypes.create_string_buffer(w, 8) for w in words]
    pointers = (ctypes.c_void_p * len(words))(*(ctypes.addressof(b) for b in buffers))
    host[name].run(grid, threads, 0, pointers)
    machine.launch(name, grid, threads, packed)
    kind = re.sub("quantize_|_imatrix", "", name)
    for (place, size), copy in zip(places, copies):
        ours = machine.memory[place : place + size].view(copy.dtype)
        if copy.dtype.kind == "f":
            ours, copy = one_nan(ours), one_nan(copy)
        elif kind in BYTES:
            ours, copy = (one_nan_per_scale(a, kind) for a in (ours, copy))
        if ours.tobytes() != copy.tobytes():
            return False
    return True


def one_nan(values):
    """The values with a single kind of NaN."""
    return np.where(np.isnan(values), values.dtype.type(np.nan), values)


def one_nan_per_scale(blocks, kind):
    """The blocks with a single kind of NaN in their f16 scales."""
    table = blocks.reshape(-1, BYTES[kind]).copy()
    for at in SCALES.get(kind, [0]):
        half = np.ascontiguousarray(table[:, at : at + 2]).view(np.uint16)
        half = np.where(half & 0x7FFF > 0x7C00, np.uint16(0x7E00), half)
        table[:, at : at + 2] = half.view(np.uint8)
    return table


def rows(seed, count):
    """Elements of many kinds, 32 of each at a time."""
    random = np.random.default_rng(seed)
    parts = []
    for i in range(count // 32):
        normal = random.standard_normal(32)
        kind = i % 12
        scale = [0.02, 1.0, 2.0 ** random.integers(-140, 100), 1e-41, 1e-30, 1e20, 0.0, 3e37][kind % 8]
        part = normal * scale
        if kind == 9:
            part = random.integers(0, 1 << 23, 32).astype(np.uint32).view(np.float32)
        if kind == 10:
            part = np.abs(part) + 0.5
        if kind == 11:
            part = np.full(32, normal[0])
        parts.append(np.asarray(part, np.float32))
    return np.nan_to_num(np.concatenate(parts), posinf=3.4e38, neginf=-3.4e38).astype(np.float32)


def u64(n):
    return struct.pack("<Q", n)


BYTES = {"q8_0": 34, "q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "q2_k": 84, "q3_k": 110, "q4_k": 144}
BYTES |= {"q5_k": 176, "q6_k": 210, "iq4_nl": 18, "iq4_xs": 136, "mxfp4": 17}

# Where blocks have f16 scales, if not at their start alone.
SCALES = {"q4_1": [0, 2], "q5_1": [0, 2], "q4_k": [0, 2], "q5_k": [0, 2], "q2_k": [80, 82], "q3_k": [108]}
SCALES |= {"q6_k": [208], "mxfp4": []}


def cases(name, seed):
    """Grid, threads and arguments of a kernel."""
    random = np.random.default_rng(seed)
    kind = re.sub("quantize_|_imatrix", "", name)
    if name.startswith("quantize_"):
        block = 256 if kind.endswith("_k") or kind == "iq4_xs" else 32
        count, row_len = 3, 1792  # more than a tile, and a part of one
        importance = np.where(random.random(row_len) < 0.2, 0, random.random(row_len) ** 3).astype(np.float32)
        values = rows(seed, count * row_len)
        sigma2 = np.array([np.float32(np.sum(r.astype(np.float32) ** 2)) for r in values.reshape(count, -1)], np.float32)
        out = np.zeros(count * row_len // block * BYTES[kind], np.uint8)
        return 1, 128, [values, importance, sigma2 / np.float32(row_len), out, u64(count), u64(row_len)]
    values = rows(seed, 2432)
    n = u64(values.size - 3)
    bits = random.integers(0, 1 << 16, values.size).astype(np.uint16)
    if name.startswith("decode_") and name != "decode_four_bit":
        source = values if name == "decode_f32" else bits
        return 2, 256, [source, np.zeros(values.size, np.float32), n]
    if name.startswith("encode_"):
        anything = random.integers(0, 1 << 32, values.size, dtype=np.uint64).astype(np.uint32)
        return 2, 256, [anything, np.zeros(values.size, np.uint16), n]
    scales = np.abs(rows(seed + 1, 256))
    table = np.linspace(-1, 1, 16).astype(np.float32)
    by_rows = [u64(19), u64(128)]
    return {
        "decode_four_bit": (1, 256, [bits, table, scales, np.zeros(values.size, np.float32), u64(37), n, u64(32), struct.pack("<I", 30)]),
        "scale_blocks": (1, 256, [values, scales, u64(3), u64(19), u64(128), u64(8), u64(24), u64(6), struct.pack("<f", 0.3), struct.pack("<I", 1)]),
        "merge": (1, 256, [values, rows(seed, 19 * 32)[: 19 * 20], rows(seed, 2560), np.zeros(4, np.float64), *by_rows, u64(20), struct.pack("<f", 0.37)]),
        "run_squares": (1, 256, [values, np.zeros(2, np.float64), n]),
        "run_distance": (1, 256, [values, rows(seed + 2, values.size), np.zeros(2, np.float64), n]),
        "find_not_finite": (2, 256, [bits.astype(np.uint32) << 16, np.full(1, 2**64 - 1, np.uint64), n]),
        "row_ratios": (1, 128, [values, scales, np.zeros(19, np.float32), *by_rows]),
        "scale_rows": (1, 256, [values, scales, *by_rows]),
        "column_squares": (1, 128, [values, np.ones(128, np.float64), *by_rows]),
        "column_ratios": (1, 256, [scales, np.abs(rows(seed, 128)).astype(np.float64), np.zeros(128, np.float32), u64(128)]),
        "scale_columns": (1, 256, [values, scales, *by_rows]),
        "row_sigma2": (1, 128, [values, np.zeros(19, np.float32), *by_rows]),
    }[name]


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    np.seterr(all="ignore")
    host = host_kernels(sys.argv[1])
    wrong = []
    for name in sys.argv[2:] or host:
        good = all(compare(host, name, *cases(name, seed)) for seed in range(SEEDS))
        print(f"{name:26} {'same' if good else 'DIFFERENT'}", flush=True)
        if not good:
            wrong.append(name)
    if wrong:
        sys.exit(f"the PTX of {', '.join(wrong)} computes otherwise than the host kernels")


if __name__ == "__main__":
    main()
