"""The benchmark on a card, run on the processor with a model of two layers; its parts with processes and files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import psutil
import pytest

from bench.gpu import random_model
from bench.gpu.continuous import ContinuousBatching
from bench.gpu.engine import HostWork, LoadedModel
from bench.gpu.figures import UnmeasuredError
from bench.gpu.limit import Traffic
from bench.gpu.load import Load
from bench.gpu.process import listen
from bench.gpu.random_model import drawn, sharded, write
from bench.gpu.shapes import SHAPES, tensors
from bench.process import StartError
from mantler.messages import EngineProfile, StepProfile
from runtime_server.models.hf_source import open_folder
from runtime_server.models.pull import pull

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--device", "cpu", "--shape", "tiny", "--formats", "int8"]
FLAGS = [
    *TINY,
    "--batches=1,3",
    "--context=48",
    "--new-tokens=12",
    "--streams=2",
    "--long-tokens=200",
    "--long-prompts=2",
]


def run(*flags: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.gpu", *flags, "--home", str(home)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


@pytest.mark.e2e
def test_a_whole_run(tmp_path: Path) -> None:
    done = run(*FLAGS, "--parts", "decode,mixed", "--json", str(tmp_path / "figures.json"), home=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "figures.json").read_text())
    assert [row["figures"]["batch"] for row in found["decode"]] == [1, 3]
    for row in found["decode"]:
        figures = row["figures"]
        # All streams decode from the same step on.
        assert figures["steps"] >= 9
        assert 49 < figures["context"] < 61
        assert figures["step_ms"] > 0 < figures["host_ms"]
        assert row["step_bytes"] > row["traffic"]["weight_bytes"] > 100_000
        assert (row["limit_share"] is None) == (found["bandwidth"] is None)
    [mixed] = found["mixed"]
    assert (mixed["figures"]["streams"], mixed["figures"]["long_prompts"]) == (2, 2)
    assert found["bandwidth"] or "torch is not installed" in found["absent"]["bandwidth"]
    assert "onnxruntime" in found["machine"]
    assert "| Mantler, int8 | 3 |" in done.stdout
    assert "3 streams" in done.stderr
    again = run(*FLAGS, "--parts", "prepare", home=tmp_path)
    assert (again.returncode, "converting" in again.stderr) == (0, False)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--device", "tpu"], "must be cpu, cuda or cuda:N"),
        (["--device", "cpu", "--formats", "int4"], "int4: must be among int8, fp32 on cpu"),
        (["--parts", "decode,all"], "all: must be among prepare, decode, mixed, peer"),
        (["--model", "/nowhere"], "must be a folder"),
        (["--json", "/nowhere/file"], "the folder of '/nowhere/file' is not there"),
        ([*FLAGS, "--context", "4000"], "the model takes 4096"),
    ],
)
def test_bad_flags(flags: list[str], why: str, tmp_path: Path) -> None:
    done = run(*flags, home=tmp_path)
    assert done.returncode == 2
    assert why in done.stderr


@pytest.mark.e2e
def test_what_fails_is_told_and_the_rest_is_kept(tmp_path: Path) -> None:
    flags = ["--device", "cpu", "--model", str(tmp_path), "--formats", "int8", "--torch-python", "/nowhere/python"]
    assert "config.json is missing" in run(*flags, home=tmp_path / "home").stderr
    write(tmp_path / "model", {**SHAPES["tiny"], "max_position_embeddings": 1536}, lambda done, total: None)
    flags[3] = str(tmp_path / "model")
    done = run(*flags, "--parts=decode,peer", "--batches=1", "--context=32", "--new-tokens=8", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert "| Mantler, int8 | 1 |" in done.stdout
    assert "- transformers: /nowhere/python cannot be run" in done.stdout


class Exposed:
    """A backend that tells for how long its device waited."""

    blocks, block_tokens = 10, 16
    exposed_ns = 3_000_000


class Profiled:
    """An engine that ran six steps, of 2 ms on the device and 1 ms beside it."""

    def profile(self) -> EngineProfile:
        return EngineProfile((StepProfile(1, False, 6, 0, 6, 0.001, run_s=0.012, sample_s=0.003, publish_s=0.002),))


def test_host_work_is_what_the_backend_tells_or_all_that_is_not_its_own() -> None:
    before, config = HostWork(0, 0.0), SimpleNamespace(config=SimpleNamespace(vocab_size=1))

    def model(backend: object) -> LoadedModel:
        return LoadedModel(cast(Any, config), cast(Any, backend), cast(Any, Profiled()), Traffic(1, 1))

    assert model(Exposed()).host_work().per_step_ms(before) == pytest.approx(0.5)
    assert model(object()).host_work().per_step_ms(before) == pytest.approx(1)
    # Two blocks of a stream are left for its growth.
    assert model(Exposed()).holds(2, 48)
    assert not model(Exposed()).holds(2, 49)


def test_random_weights_keep_their_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(random_model, "PIECE", 1000)
    told: list[tuple[int, int]] = []
    write(tmp_path / "tiny", SHAPES["tiny"], lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0
    source = open_folder(tmp_path / "tiny")
    gate = source.weights.load("layers.1.gate")
    assert gate.std() == pytest.approx(1 / 8, rel=0.05)
    assert len(np.unique(gate[:8])) > 100
    assert (source.weights.load("final_norm") == 1).all()
    manifest = pull(str(tmp_path / "tiny"), tmp_path / "home", as_name="tiny:int8")
    assert manifest.config.vocab_size == SHAPES["tiny"]["vocab_size"]


def test_weights_are_the_same_every_time() -> None:
    with ThreadPoolExecutor(2) as threads:
        first, again, other = (drawn(name, (8, 4), threads).tobytes() for name in ("a", "a", "b"))
    assert first == again != other


def test_nothing_is_left_of_an_interrupted_folder(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "tiny", SHAPES["tiny"], interrupt)
    assert list(tmp_path.iterdir()) == []


def test_shards_hold_everything_once() -> None:
    wanted = tensors(SHAPES["tiny"])
    shards = list(sharded(wanted, 20_000))
    assert len(shards) > 5
    assert [name for shard in shards for name in shard] == list(wanted)


def test_a_process_that_fails_or_hangs(tmp_path: Path) -> None:
    def heard(code: str, timeout_s: float = 30) -> list[dict[str, Any]]:
        return list(listen([sys.executable, "-c", code], tmp_path / "log", env=os.environ, timeout_s=timeout_s))

    assert heard("print('{\"said\": \"x\"}'); print('noise'); print('[1]')") == [{"said": "x"}]
    with pytest.raises(StartError, match=r"(?s)ended with 3.*why"):
        heard("import sys; print('why', file=sys.stderr); sys.exit(3)")
    code = "import subprocess, time; subprocess.Popen(['sleep', '600']); time.sleep(600)"
    with pytest.raises(StartError, match=r"more than 0\.2 s"):
        heard(code, 0.2)
    assert [process for process in psutil.Process().children(recursive=True) if process.name() == "sleep"] == []


@dataclass
class Answered:
    """What transformers hands out of a request."""

    request_id: str
    timestamps: list[float] | None
    error: str | None = None

    def is_finished(self) -> bool:
        return True


@dataclass
class Batcher:
    """Stands for the manager of transformers: a token a second for everybody, or an error, or nothing at all."""

    error: str | None = None
    silent: bool = False
    asked: list[Answered] = field(default_factory=list)

    def add_request(self, prompt: list[int], *, max_new_tokens: int, record_timestamps: bool) -> str:
        assert record_timestamps
        times = [1e6 + n for n in range(max_new_tokens)]
        self.asked.append(Answered(f"r{id(prompt)}", None if self.error else times, self.error))
        return self.asked[-1].request_id

    def get_result(self, timeout: float) -> Answered | None:
        return None if self.silent else self.asked.pop()

    def is_running(self) -> bool:
        return False


def test_the_peers_figures_come_from_its_own_times() -> None:
    load = Load(batches=(3,), context=10, new_tokens=8)
    found = ContinuousBatching(Batcher(), 100, load).decode(3)
    # Everybody decodes two tokens more than asked for, since they may begin one after the other.
    assert (found.batch, found.steps, found.step_ms) == (3, 9, 1000)
    assert found.host_ms is None


@pytest.mark.parametrize(("batcher", "why"), [(Batcher(error="broken"), "broken"), (Batcher(silent=True), "stopped")])
def test_a_peer_that_fails(batcher: Batcher, why: str) -> None:
    with pytest.raises(UnmeasuredError, match=why):
        ContinuousBatching(batcher, 100, Load()).decode(1)
