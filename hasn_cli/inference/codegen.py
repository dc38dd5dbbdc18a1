"""Writes functions in LLVM's language and compiles them for this machine's CPU, with llvmlite.

`Code` writes one function: addresses, vectors of float32, arithmetic, loops. `Functions` compiles what was written and
keeps the machine code in the user's cache folder, since compiling takes half a second, and loading a few milliseconds.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import llvmlite
from llvmlite import binding as llvm
from llvmlite import ir

from hasn_cli import files

FLOAT, INT, INT32, POINTER = ir.FloatType(), ir.IntType(64), ir.IntType(32), ir.PointerType()
FORMATS = {"pointer": (POINTER, ctypes.c_void_p), "int": (INT, ctypes.c_int64), "float": (FLOAT, ctypes.c_float)}
LONG_LIMITS = ("ALL", "DEFAULT", "AVX512", "AVX10")  # values of ONEDNN_MAX_CPU_ISA that allow AVX-512
DIGEST = hashlib.sha256().digest_size  # bytes in front of the machine code in the cache
UNALIGNED = 4  # bytes; vectors begin at any float32

Value = Any  # an LLVM value: llvmlite has no types for mypy
Number = Any  # an int, or an LLVM integer


class Code:
    """One function, written step by step. Indices count float32 values.

    Args:
        module: what the function goes into.
        name: of the function.
        arguments: name → pointer, int or float. Memory behind different pointers must not overlap.
    """

    def __init__(self, module: ir.Module, name: str, arguments: dict[str, str]) -> None:
        self.module, self.name, self.formats = module, name, list(arguments.values())
        types = [FORMATS[kind][0] for kind in self.formats]
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), types), name)
        for argument in self.function.args:
            if argument.type == POINTER:
                argument.add_attribute("noalias")
        self._arguments = dict(zip(arguments, self.function.args, strict=True))
        entry, self._body = (self.function.append_basic_block(part) for part in ("entry", "body"))
        self._variables, self.build = ir.IRBuilder(entry), ir.IRBuilder(self._body)

    def __getitem__(self, argument: str) -> Value:
        return self._arguments[argument]

    def finish(self) -> None:
        """End the function."""
        self.build.ret_void()
        self._variables.branch(self._body)

    # Integers

    def add(self, *terms: Number) -> Value:
        """The sum of integers."""
        total = _integer(terms[0])
        for term in terms[1:]:
            total = self.build.add(total, _integer(term))
        return total

    def times(self, *factors: Number) -> Value:
        """The product of integers."""
        product = _integer(factors[0])
        for factor in factors[1:]:
            product = self.build.mul(product, _integer(factor))
        return product

    def smaller(self, a: Number, b: Number) -> Value:
        """The smaller of two integers."""
        return self.build.select(self.less(a, b), _integer(a), _integer(b))

    def larger(self, a: Number, b: Number) -> Value:
        """The larger of two integers."""
        return self.build.select(self.less(a, b), _integer(b), _integer(a))

    def less(self, a: Number, b: Number) -> Value:
        """Whether a < b, for integers."""
        return self.build.icmp_signed("<", _integer(a), _integer(b))

    # Memory

    def at(self, pointer: Value, index: Number) -> Value:
        """The address of the float32 at `index`."""
        return self.build.gep(pointer, [_integer(index)], source_etype=FLOAT)

    def load(self, pointer: Value, index: Number, lanes: int) -> Value:
        """`lanes` values from `index` on."""
        return self.build.load(self.at(pointer, index), typ=ir.VectorType(FLOAT, lanes), align=UNALIGNED)

    def scalar(self, pointer: Value, index: Number) -> Value:
        """One value."""
        return self.build.load(self.at(pointer, index), typ=FLOAT, align=UNALIGNED)

    def store(self, value: Value, pointer: Value, index: Number) -> None:
        """Write a vector or a single value to `index`."""
        self.build.store(value, self.at(pointer, index), align=UNALIGNED)

    def variable(self, value: Value) -> Variable:
        """Something that changes in a loop; it stays in a register if one is free."""
        return Variable(self, self._variables.alloca(value.type), value)

    # Floats and vectors

    def constant(self, value: float, lanes: int) -> Value:
        """A vector of equal numbers."""
        return ir.Constant(ir.VectorType(FLOAT, lanes), [float(value)] * lanes)

    def spread(self, value: Value, lanes: int) -> Value:
        """A vector that repeats one float32."""
        nothing = ir.Constant(ir.VectorType(FLOAT, lanes), ir.Undefined)
        first = self.build.insert_element(nothing, value, ir.Constant(INT32, 0))
        return self.build.shuffle_vector(first, nothing, _lane_numbers([0] * lanes))

    def lane(self, vector: Value, number: int) -> Value:
        """One value of a vector."""
        return self.build.extract_element(vector, ir.Constant(INT32, number))

    def vector(self, values: Sequence[Value], lanes: int) -> Value:
        """A vector of these values, and zeros."""
        result = self.constant(0, lanes)
        for number, value in enumerate(values):
            result = self.build.insert_element(result, value, ir.Constant(INT32, number))
        return result

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a·b + c, rounded once."""
        return self._call(f"llvm.fma.v{a.type.count}f32", a.type, a, b, c)

    def root(self, value: Value) -> Value:
        """The square root of one value."""
        return self._call("llvm.sqrt.f32", FLOAT, value)

    def clamp(self, x: Value, low: float, high: float) -> Value:
        """x within [low, high], for a vector."""
        low, high = self.constant(low, x.type.count), self.constant(high, x.type.count)
        x = self.build.select(self.build.fcmp_ordered(">", x, low), x, low)
        return self.build.select(self.build.fcmp_ordered("<", x, high), x, high)

    def total(self, vectors: Sequence[Value]) -> Value:
        """The sum of all values in vectors of any lengths."""
        by_length: dict[int, Value] = {}
        for vector in vectors:
            lanes = vector.type.count
            by_length[lanes] = self.build.fadd(by_length[lanes], vector) if lanes in by_length else vector
        sums = [self._across(vector) for vector in by_length.values()]
        result = sums[0]
        for term in sums[1:]:
            result = self.build.fadd(result, term)
        return result

    def _across(self, vector: Value) -> Value:
        while (lanes := vector.type.count) > 1:
            low, high = (self.build.shuffle_vector(vector, vector, _lane_numbers(half)) for half in _halves(lanes))
            vector = self.build.fadd(low, high)
        return self.lane(vector, 0)

    def exp(self, x: Value) -> Value:
        """e^x for a vector within ±87, to two units in the last place.

        e^x = 2^k · e^r with |r| ≤ ln(2)/2, and a polynomial for e^r: Cephes, expf.c.
        """
        build, lanes = self.build, x.type.count
        whole = ir.VectorType(INT32, lanes)
        k = self._call(f"llvm.rint.v{lanes}f32", x.type, build.fmul(x, self.constant(1.4426950408889634, lanes)))
        r = self.fma(k, self.constant(-0.693359375, lanes), x)
        r = self.fma(k, self.constant(2.12194440e-4, lanes), r)
        power = self.polynomial(r, 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2,
                                1.6666665459e-1, 5.0000001201e-1, 1.0, 1.0)  # fmt: skip
        exponent = build.shl(build.fptosi(k, whole), ir.Constant(whole, [23] * lanes))
        return build.bitcast(build.add(build.bitcast(power, whole), exponent), x.type)

    def polynomial(self, x: Value, *coefficients: float) -> Value:
        """The polynomial with these coefficients, the highest power's first."""
        result = self.constant(coefficients[0], x.type.count)
        for coefficient in coefficients[1:]:
            result = self.fma(result, x, self.constant(coefficient, x.type.count))
        return result

    def sigmoid(self, x: Value) -> Value:
        """1/(1 + e^−x) for a vector."""
        one = self.constant(1, x.type.count)
        return self.build.fdiv(one, self.build.fadd(one, self.exp(self.build.fneg(self.clamp(x, -87, 87)))))

    def gelu(self, x: Value) -> Value:
        """x·Φ(x) for a vector, with an error of at most 10⁻⁷·|x|.

        erf(z) = 1 − p(1/(1 + 0.3275911 z)) e^−z² for z ≥ 0: Abramowitz and Stegun, 7.1.26.
        """
        build, lanes = self.build, x.type.count
        size = self._call(f"llvm.fabs.v{lanes}f32", x.type, x)
        z = self.clamp(build.fmul(size, self.constant(0.7071067811865476, lanes)), 0, 9)
        one = self.constant(1, lanes)
        t = build.fdiv(one, self.fma(z, self.constant(0.3275911, lanes), one))
        p = self.polynomial(t, 1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592, 0.0)
        tail = build.fmul(p, self.exp(build.fneg(build.fmul(z, z))))  # erfc(z), which is 2·Φ(−|x|)
        half = build.fmul(self.constant(0.5, lanes), size)
        positive = build.fmul(self.constant(0.5, lanes), build.fadd(x, size))
        return self.fma(build.fneg(half), tail, positive)  # max(x, 0) − |x|·Φ(−|x|)

    def _call(self, name: str, result: Value, *arguments: Value) -> Value:
        function = self.module.globals.get(name)
        if function is None:
            function = ir.Function(self.module, ir.FunctionType(result, [a.type for a in arguments]), name)
        return self.build.call(function, arguments)

    # Control

    @contextmanager
    def loop(self, start: Number, stop: Number, step: int = 1) -> Iterator[Value]:
        """Repeat what is written inside for start, start + step, … below stop."""
        index = self.variable(_integer(start))
        head, body, after = (self.function.append_basic_block(part) for part in ("head", "loop", "after"))
        self.build.branch(head)
        self.build.position_at_end(head)
        current = index.get()
        self.build.cbranch(self.less(current, stop), body, after)
        self.build.position_at_end(body)
        yield current
        index.set(self.add(current, step))
        self.build.branch(head)
        self.build.position_at_end(after)

    @contextmanager
    def unless(self, condition: Value) -> Iterator[None]:
        """Do what is written inside only if the condition is false."""
        with self.build.if_then(self.build.not_(condition)):
            yield


class Variable:
    """A value that changes while the function runs."""

    def __init__(self, code: Code, slot: Value, value: Value) -> None:
        self._code, self._slot = code, slot
        self.set(value)

    def get(self) -> Value:
        """The value now."""
        return self._code.build.load(self._slot, typ=self._slot.allocated_type)

    def set(self, value: Value) -> None:
        """Change it."""
        self._code.build.store(value, self._slot)


def _integer(value: Number) -> Value:
    return ir.Constant(INT, value) if isinstance(value, int) else value


def _lane_numbers(numbers: Sequence[int]) -> Value:
    return ir.Constant(ir.VectorType(INT32, len(numbers)), list(numbers))


def _halves(lanes: int) -> tuple[range, range]:
    return range(lanes // 2), range(lanes // 2, lanes)


def vector_lanes() -> int:
    """float32 values in the longest vector that may be used here: 16 with AVX-512, 8 with AVX2 and FMA, or else 0.

    ONEDNN_MAX_CPU_ISA, which limits PyTorch's operators, limits these too.
    """
    features = llvm.get_host_cpu_features()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() or "ALL"
    if limit.startswith(LONG_LIMITS) and all(features.get(name) for name in ("avx512f", "avx512vl", "avx512dq")):
        return 16
    return 8 if limit not in ("SSE41", "AVX") and features.get("avx2") and features.get("fma") else 0


class Functions:
    """Compiled functions, to be called by name with addresses and numbers. Calls leave Python's lock to other threads.

    Args:
        signatures: for each function, its arguments as for `Code`.
        write: writes them into a module; called unless the machine code is in the cache.
        lanes: of the longest vector, as `vector_lanes` gives it.
        sources: files that decide what `write` writes: machine code in the cache belongs to their contents.

    Raises:
        RuntimeError: LLVM cannot compile them for this machine.
    """

    def __init__(
        self,
        signatures: dict[str, dict[str, str]],
        write: Callable[[ir.Module], None],
        lanes: int,
        sources: Sequence[Path],
    ) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        features = _features(lanes)
        target = llvm.Target.from_triple(llvm.get_process_triple())
        machine = target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=2)
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        about = repr((llvmlite.__version__, llvm.llvm_version_info, llvm.get_host_cpu_name(), features, lanes))
        stored = _cache_file(about, (Path(__file__), *sources))
        if not (stored and self._load(stored)):
            module = ir.Module()
            write(module)
            self._compile(module, machine, stored)
        self._engine.finalize_object()
        self._functions: dict[str, Callable[..., None]] = {}
        for name, arguments in signatures.items():
            kind = ctypes.CFUNCTYPE(None, *(FORMATS[argument][1] for argument in arguments.values()))
            self._functions[name] = kind(self._engine.get_function_address(name))

    def __getitem__(self, name: str) -> Callable[..., None]:
        return self._functions[name]

    def _load(self, stored: Path) -> bool:
        """Load machine code from the cache; False if it is not there, or damaged."""
        try:
            content = stored.read_bytes()
        except OSError:
            return False
        if content[:DIGEST] != hashlib.sha256(content[DIGEST:]).digest():
            return False
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(content[DIGEST:]))
        return True

    def _compile(self, module: ir.Module, machine: Value, stored: Path | None) -> None:
        written = llvm.parse_assembly(str(module))
        written.verify()
        options = llvm.create_pipeline_tuning_options(speed_level=2)
        options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False  # all done in `write`
        passes = llvm.create_pass_builder(machine, options)
        passes.getModulePassManager().run(written, passes)
        code = machine.emit_object(written)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        if stored:
            with suppress(OSError):  # a full disk: it is compiled again next time
                files.write(stored, hashlib.sha256(code).digest() + code)


def _features(lanes: int) -> str:
    """This CPU's features for LLVM, without AVX-512 if vectors are shorter. LLVM would halve vectors on some CPUs."""
    found = llvm.get_host_cpu_features()
    listed = ("+" + name if on and (lanes == 16 or "avx512" not in name) else "-" + name for name, on in found.items())
    return ",".join([*sorted(listed), "-prefer-256-bit"])


def _cache_file(about: str, sources: Sequence[Path]) -> Path | None:
    """Where the machine code of these sources is kept; None if others could write there, or there is no such place."""
    digest = hashlib.sha256(about.encode())
    for source in sources:
        digest.update(source.read_bytes())
    folder = files.private_cache("compiled")
    return folder and folder / f"{digest.hexdigest()[:32]}.o"
