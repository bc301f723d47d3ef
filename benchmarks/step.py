"""One training step: ours against plain PyTorch and transformers, and the price of what it adds.

    python -m benchmarks.step [--rounds 9] [--json benchmarks/results/step-cpu.json]

On a CPU at the shapes of the first issue (d=256, L=6, T=256, B=8, V=8192), on a GPU at GPT-2 small
(124M, T=1024, bf16). Contestants take turns, so that a busy moment falls on all; each runs under
its own determinism switches, and on a CPU in a process of its own, as it would run alone: ours
keeps its memory and lets waiting threads sleep, the others are what PyTorch makes of them. On a GPU
they share one process, and with it what its memory can hold. MFU: 6 operations per weight and token
and 12·L·D·T of attention a token, over the device's peak; on a CPU the peak is what its own matrix
product reaches here.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import plain
from benchmarks.elsewhere import Elsewhere
from benchmarks.plain import CPU, DRY, GPU, Sizes, tokens
from benchmarks.rounds import interleaved, medians, ratios, report
from forensics import config, identity
from forensics.model.initialize import initialize
from forensics.model.knobs import shape_of
from forensics.model.shape import parameter_shapes
from forensics.observe.recorder import Recorder
from forensics.step.batch import Batch
from forensics.step.observer import SILENT, Observer
from forensics.step.state import TrainState
from forensics.train.advance import advance
from forensics.train.run import build_model
from forensics.train.schedule import own_policy

PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "4090": 165e12,
}  # bf16, dense
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Switches(NamedTuple):
    """What PyTorch may be told of determinism; contestants that share a process have their own."""

    strict: bool
    cudnn_attention: bool
    bf16_sums: bool  # whether a product may add up in bf16

    @classmethod
    def now(cls) -> Switches:
        """Return this process's switches."""
        cuda = torch.backends.cuda
        sums = cuda.matmul.allow_bf16_reduced_precision_reduction
        return cls(
            torch.are_deterministic_algorithms_enabled(), cuda.cudnn_sdp_enabled(), bool(sums)
        )

    def set(self) -> None:
        """Give them to PyTorch."""
        torch.use_deterministic_algorithms(self.strict)
        torch.backends.cuda.enable_cudnn_sdp(self.cudnn_attention)
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = self.bf16_sums


USUAL = Switches.now()  # before anything of ours settles them


class Nowhere:
    """A writer that drops its rows: what recording computes, without the disk."""

    def append(self, table: str, **columns: Any) -> None:
        """Drop the row."""


class Ours:
    """`advance` with an observer, under strict determinism or without."""

    def __init__(
        self,
        z: Sizes,
        family: str,
        level: str | None = None,
        compiled: bool = False,
        strict: bool = True,
    ) -> None:
        recipe = config.from_dict(
            {
                "model": {"family": family, "layers": z.L, "width": z.D, "heads": z.H},
                "train": {"batch": z.B, "learning_rate": 3e-4, "compile": compiled},
                "data": {"sequence_length": z.T},
            }
        )
        shape = shape_of(recipe.model, z.V, z.T)
        self.parameters = sum(math.prod(s) for s in parameter_shapes(shape).values())
        self.z = z
        identity.enable_determinism(
            identity.thread_count(0)
        )  # anew: another contestant of this process may have set its own
        self.switches = Switches.now() if strict else USUAL
        self.model = build_model(recipe, shape, DEVICE, 0)
        if compiled and not strict:  # without the compiler's own option, too
            self.model.decoder._block = torch.compile(
                self.model.decoder.block, dynamic=False, fullgraph=True
            )
        self.state = TrainState.start(
            {n: t.to(DEVICE) for n, t in initialize(shape, "normal", 0).items()}
        )
        self.policy = own_policy(recipe.train, "bf16" if DEVICE == "cuda" else "fp32")
        # the digest of every state is part of a CPU run, recorded or not
        record = config.Record(level=level or "off")
        self.watch: Observer = (
            Recorder(Nowhere(), record, self.model, DEVICE == "cpu") if level else SILENT
        )  # type: ignore[arg-type]

    def __call__(self) -> None:
        """Take one step."""
        counters = self.state.counters
        self.switches.set()
        advance(
            self.state, batch(self.z, counters.step), self.policy(counters), self.model, self.watch
        )


def batch(z: Sizes, step: int) -> Batch:
    """Return the batch of a step."""
    return Batch(tokens(z, step), torch.ones(z.B, z.T), float(z.B * z.T), torch.arange(z.B), step)


def contestants(z: Sizes) -> dict[str, Callable[[], Ours]]:
    """Return what makes each contestant, by name; it then takes a step at each call."""
    makers = {
        "gpt2": lambda: Ours(z, "gpt2"),
        "gpt2, compiled": lambda: Ours(z, "gpt2", compiled=True),
        "gpt2, compiled, not strict": lambda: Ours(z, "gpt2", compiled=True, strict=False),
        "gpt2, compiled, light": lambda: Ours(z, "gpt2", "light", compiled=True),
        "llama": lambda: Ours(z, "llama"),
        "llama, off": lambda: Ours(z, "llama", "off"),
        "llama, light": lambda: Ours(z, "llama", "light"),
    }
    if DEVICE == "cuda":
        del makers["llama, off"]  # it has a price where every state has a digest: on the CPU
    return makers


class Usual:
    """A contestant that is not ours, under the switches that PyTorch has by itself."""

    def __init__(self, step: plain.Plain) -> None:
        self.step, self.parameters = step, step.parameters

    def __call__(self) -> None:
        """Take one step."""
        USUAL.set()
        self.step()


# ratio → (contestant, the one it is held against): speed over, or price of
SPEEDS = {
    "gpt2, eager, over plain GPT, eager": ("gpt2", "plain GPT"),
    "gpt2, compiled, over plain GPT, eager": ("gpt2, compiled", "plain GPT"),
    "gpt2, compiled, over plain GPT, compiled": ("gpt2, compiled", "plain GPT, compiled"),
    "llama, eager, over transformers' Llama": ("llama", "transformers Llama"),
}
PRICES = {
    "determinism (compiled)": ("gpt2, compiled", "gpt2, compiled, not strict"),
    "light recording (compiled)": ("gpt2, compiled, light", "gpt2, compiled"),
    "determinism and light recording (compiled)": (
        "gpt2, compiled, light",
        "gpt2, compiled, not strict",
    ),
    "digest of every state": ("llama, off", "llama"),
    "light recording, digests included (eager)": ("llama, light", "llama"),
}


def measure(z: Sizes, rounds: int, limit: float) -> dict[str, Any]:
    """Time every contestant in turns."""
    until = time.perf_counter() + limit
    identity.enable_determinism(
        identity.thread_count(0)
    )  # before CUDA starts, with whichever contestant
    with contextlib.ExitStack() as open_:
        steppers: dict[str, Any] = {}
        seconds_to_make = {}
        for name, make in [*plain.contestants(z, DEVICE).items(), *contestants(z).items()]:
            started = time.perf_counter()
            if DEVICE == "cuda":
                step = make()
                steppers[name] = Usual(step) if isinstance(step, plain.Plain) else step
            else:
                module = "benchmarks.plain" if name in plain.contestants(z) else "benchmarks.step"
                steppers[name] = open_.enter_context(Elsewhere(module, name, z))
            steppers[name]()  # the compiler works here
            seconds_to_make[name] = round(time.perf_counter() - started, 1)
        memory = (
            {name: one_step_memory(stepper) / 2**30 for name, stepper in steppers.items()}
            if DEVICE == "cuda"
            else {}
        )
        seconds = interleaved(
            {name: synchronous(stepper) for name, stepper in steppers.items()}, rounds, until=until
        )
        memory = memory or {name: stepper.told["peak_gib"] for name, stepper in steppers.items()}
    peak, peak_is = device_peak()
    middle = medians(seconds)
    operations = {
        name: flops_per_token(z, stepper.parameters) for name, stepper in steppers.items()
    }
    return {
        "shapes": vars(z),
        "threads": identity.thread_count(0),
        "rounds": len(next(iter(seconds.values()))),
        "precision": "bf16" if DEVICE == "cuda" else "fp32",
        "parameters": {name: stepper.parameters for name, stepper in steppers.items()},
        "first_step_seconds": seconds_to_make,
        "seconds": {name: round(seconds_each, 4) for name, seconds_each in middle.items()},
        "tokens_per_second": {
            name: round(z.B * z.T / seconds_each) for name, seconds_each in middle.items()
        },
        "mfu": {
            name: round(operations[name] * z.B * z.T / seconds_each / peak, 4)
            for name, seconds_each in middle.items()
        },
        "peak": f"{peak / 1e12:.3g} TFLOPS, {peak_is}",
        "memory_gib": {name: round(gib, 2) for name, gib in memory.items()},
        "speed": {
            name: round(1 / ratios(seconds, base)[contestant], 3)
            for name, (contestant, base) in SPEEDS.items()
            if {contestant, base} <= seconds.keys()
        },
        "price": {
            name: round(ratios(seconds, base)[contestant] - 1, 4)
            for name, (contestant, base) in PRICES.items()
            if {contestant, base} <= seconds.keys()
        },
    }


def synchronous(step: Callable[[], Any]) -> Callable[[], None]:
    """Return the step so that on a GPU it ends when its work does."""

    def run() -> None:
        step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return run


def flops_per_token(z: Sizes, parameters: int) -> float:
    """Count forward and backward: 6 per weight that multiplies a token, 12·L·D·T of attention.

    After PaLM, appendix B.
    """
    looked_up = (
        z.T * z.D if parameters < 2 * z.V * z.D + 12 * z.L * z.D**2 else z.V * z.D
    )  # positions; an untied embedding
    return 6.0 * (parameters - looked_up) + 12.0 * z.L * z.D * z.T


def device_peak() -> tuple[float, str]:
    """Return the device's operations per second, and where the number is from."""
    if DEVICE == "cuda":
        name = torch.cuda.get_device_name()
        maker_peak = next(
            (peak for card, peak in PEAKS.items() if all(word in name for word in card.split())),
            None,
        )
        if maker_peak is not None:
            return maker_peak, f"the maker's, {name}"
    n, dtype = (8192, torch.bfloat16) if DEVICE == "cuda" else (2048, torch.float32)
    matrix = torch.randn(n, n, device=DEVICE).to(dtype)
    seconds = interleaved({"product": synchronous(lambda: matrix @ matrix)}, 7, warm=2)
    return 2.0 * n**3 / min(seconds["product"]), f"measured, {n}³ matrix product"


def one_step_memory(step: Callable[[], Any]) -> int:
    """Return the bytes that a step needs beyond all that stays, and 12 bytes a parameter."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before + 12 * step.parameters  # type: ignore[attr-defined]


def main() -> None:
    """Read the arguments, measure, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--dry", action="store_true", help="tiny shapes: whether it runs, not how fast"
    )
    parser.add_argument(
        "--limit", type=float, default=math.inf, help="seconds after which no further round begins"
    )
    options = parser.parse_args()
    z = DRY if options.dry else GPU if DEVICE == "cuda" else CPU
    report("step", measure(z, options.rounds, options.limit), options.json)


if __name__ == "__main__":
    main()
