"""A library with the calls of NVIDIA's driver, compiled for a test: real C calls, no card."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = r"""
#include <stddef.h>
#include <string.h>
static int contexts = 0, current = 0;
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuInit(unsigned flags) { return flags ? 1 : INIT; }
int cuDeviceGetCount(int *count) { *count = CARDS; return 0; }
int cuDeviceGet(int *device, int index) { *device = 40 + index; return index < 0 || index >= CARDS; }
int cuDeviceGetName(char *name, int size, int device) {
  strncpy(name, device == 40 ? "Test Card" : "Other Card", size); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 9 : -1; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &contexts; contexts++; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { contexts--; return 0; }
int cuCtxPushCurrent_v2(void *context) { current += context == &contexts; return 0; }
int cuCtxPopCurrent_v2(void **context) { current--; return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) {
  *free = FREE; *total = 24000000000; return current == 1 ? MEM_RESULT : 201; }
int cuGetErrorName(int result, const char **name) { *name = result == 201 ? "CUDA_ERROR_INVALID_CONTEXT" : result == 2 ?
  "CUDA_ERROR_OUT_OF_MEMORY" : 0; return 0; }
int test_contexts(void) { return contexts + current; }
"""


def build(
    folder: Path, *, version: int = 13000, cards: int = 2, init: int = 0, memory_result: int = 0, free: int = 20 * 10**9
) -> Path:
    """The library's path. ``init`` and ``memory_result`` are what ``cuInit`` and ``cuMemGetInfo`` return."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library = folder / "cuda.c", folder / "libcuda.so.1"
    source.write_text(_SOURCE)
    values = {"VERSION": version, "CARDS": cards, "INIT": init, "MEM_RESULT": memory_result, "FREE": f"{free}UL"}
    defines = [f"-D{name}={value}" for name, value in values.items()]
    subprocess.run([compiler, "-shared", "-fPIC", "-w", *defines, "-o", library, source], check=True)
    return library
