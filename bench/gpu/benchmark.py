"""Runs every part of the benchmark, one process after the other, and gathers what they say."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from bench.gpu import table
from bench.gpu.limit import Traffic, bf16_traffic
from bench.gpu.load import KINDS, Load
from bench.gpu.models import converted
from bench.gpu.process import listen
from bench.gpu.results import Results
from bench.process import StartError
from bench.weights import environment
from runtime_server.models.hf_source import open_folder

PARTS = ("prepare", *KINDS, "peer")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how."""

    folder: Path
    """Hugging Face folder of the model."""
    formats: tuple[str, ...]
    """Of Mantler's weights."""
    parts: frozenset[str]
    """Some of :data:`PARTS`."""
    load: Load
    device: str
    home: Path
    """Of Mantler's conversions, and of the logs."""
    torch_python: Path
    """A Python with torch and transformers."""
    prefill_chunk: int | None
    timeout_s: float
    """Of each process."""


class Benchmark:
    """Fills ``results``."""

    def __init__(self, plan: Plan, results: Results, console: Console) -> None:
        self._plan = plan
        self._console = console
        self.results = results
        self.failed = False
        """Whether a part of Mantler's own failed."""

    def run(self) -> None:
        """Measures everything that was asked for."""
        plan = self._plan
        python, load = str(plan.torch_python), ["--load", plan.load.to_json()]
        if plan.parts - {"prepare"}:
            self._listen("bandwidth", [python, "-m", "bench.gpu.bandwidth"])
        for quantization in plan.formats if plan.parts - {"peer"} else ():
            self._console.rule(f"Mantler, {quantization}")
            self._mantler(quantization, load)
        if "peer" in plan.parts:
            self._console.rule("transformers")
            command = [python, "-m", "bench.gpu.transformers_peer", "--folder", str(plan.folder), *load]
            self._listen("transformers", command, bf16_traffic(open_folder(plan.folder).config))

    def _mantler(self, quantization: str, load: Sequence[str]) -> None:
        """One format of the weights."""
        plan, name = self._plan, f"Mantler, {quantization}"
        try:
            model_id = converted(plan.folder, quantization, plan.home)
        except subprocess.SubprocessError as error:
            self._leave_out(name, str(error))
            self.failed = True
            return
        if plan.parts & set(KINDS):
            command = [sys.executable, "-m", "bench.gpu.mantler_runner", "--home", str(plan.home), *load]
            if plan.prefill_chunk is not None:
                command += ["--prefill-chunk", str(plan.prefill_chunk)]
            self.failed |= not self._listen(name, [*command, "--model", model_id])

    def _listen(self, name: str, command: Sequence[str], traffic: Traffic | None = None) -> bool:
        """Runs a module and takes in what it says; false where it failed."""
        plan = self._plan
        env = environment(plan.home) | {"HF_HUB_OFFLINE": "1"}
        log = plan.home / f"{command[2].removeprefix('bench.gpu.')}.log"
        log.unlink(missing_ok=True)
        try:
            process = listen([*command, "--device", plan.device], log, env=env, timeout_s=plan.timeout_s)
            with contextlib.closing(process) as lines:
                for said in lines:
                    if said["said"] == "traffic":
                        traffic = Traffic(said["weight_bytes"], said["kv_bytes_per_token"])
                        continue
                    self.results.take(said, name, traffic)
                    self._console.print(escape(table.summary(said, name)), soft_wrap=True)
        except StartError as error:
            self._leave_out(name, str(error))
            return False
        return True

    def _leave_out(self, name: str, why: str) -> None:
        self.results.absent[name] = why.strip().splitlines()[-1]
        self._console.print(f"[yellow]{escape(name)}:[/] {escape(why)}", soft_wrap=True)
