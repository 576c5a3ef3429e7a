"""The operators' tests hold for every instruction set that this processor has, not only for its best."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime_server import native
from tests.runtime_server.native.operators import Linear

ROOT = Path(__file__).parents[3]
SETS = ("avx512_bf16", "avx512_vnni", "avx2", "baseline")
"""The best first; a processor has all that come after its own."""
TESTS = ("test_linear.py", "test_attention.py", "test_embedding.py", "test_sampling.py")


def in_a_process_with(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    if SETS.index(name) < SETS.index(native.instruction_set()):
        pytest.skip(f"this processor does not have {name}")
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {native.ONE_SET: name, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("name", SETS)
def test_the_operators_tests_hold(name: str) -> None:
    if name == native.instruction_set():
        pytest.skip("it is the one that the other tests use")
    files = [str(Path(__file__).with_name(test)) for test in TESTS]
    done = in_a_process_with(name, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files)
    assert done.returncode == 0, done.stdout + done.stderr


def fingerprint() -> str:
    """Of some linear layers' results."""
    random = np.random.default_rng(0)
    digest = hashlib.sha256()
    for bits in (4, 8):
        for gated in (False, True):
            layer = Linear.random(bits, 48, 200, norm=True, bias=True, gated=gated)
            digest.update(layer.run(random.standard_normal((37, 200)).astype(np.float32)).tobytes())
    return digest.hexdigest()


def test_whole_number_layers_give_the_same_bits_with_avx2_and_avx512() -> None:
    """Their sums are exact, and the rest is done in one order."""
    code = f"from {__name__} import fingerprint; print(fingerprint())"
    results = [in_a_process_with(name, "-c", code) for name in SETS[:2]]
    assert [done.returncode for done in results] == [0, 0], results
    assert results[0].stdout == results[1].stdout
