"""Writes a model of random weights as a Hugging Face folder: configuration, tokenizer, sharded safetensors in bf16.

Speed does not depend on the weights' values. They are scaled so that every layer keeps the size of its input, and no
logit overflows.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from bench.gpu.shapes import Tensors, tensors
from runtime_server.models.files import check_space
from runtime_server.models.safetensors_files import INDEX_FILE
from runtime_server.models.vocabulary import byte_alphabet

BF16 = np.dtype(ml_dtypes.bfloat16)
SHARD_BYTES = 2 * 10**9
"""Of one file, but for a tensor that is larger by itself; twice as much memory is needed."""
PIECE = 2**22
"""Weights that one thread draws at a time."""
THREADS = 16
END = "<|end|>"


def write(folder: Path, config: Mapping[str, Any], progress: Callable[[int, int], None]) -> None:
    """Makes ``folder``, whole or not at all.

    Args:
        config: the ``config.json``, one of :data:`bench.gpu.shapes.SHAPES`.
        progress: hears bytes written and bytes in all, after each file.

    Raises ``PullError`` where the disk is too full.
    """
    wanted = tensors(config)
    total = BF16.itemsize * sum(math.prod(shape) for shape in wanted.values())
    check_space(folder, total)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _describe(part, config)
        _weights(part, wanted, total, progress)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _describe(folder: Path, config: Mapping[str, Any]) -> None:
    """The configuration, and a tokenizer of single bytes: requests are made of token ids."""
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    alphabet = {character: number + 1 for number, character in enumerate(byte_alphabet())}
    tokenizer = Tokenizer(BPE({END: 0, **alphabet}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(folder / "tokenizer.json"))


def _weights(folder: Path, wanted: Tensors, total: int, progress: Callable[[int, int], None]) -> None:
    shards = list(sharded(wanted))
    places: dict[str, str] = {}
    done = 0
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as threads:
        for number, shard in enumerate(shards, 1):
            name = f"model-{number:05}-of-{len(shards):05}.safetensors"
            values = {tensor: drawn(tensor, shape, threads) for tensor, shape in shard.items()}
            save_file(values, folder / name, metadata={"format": "pt"})
            places |= dict.fromkeys(shard, name)
            done += sum(value.nbytes for value in values.values())
            progress(done, total)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")


def sharded(wanted: Tensors, limit: int = SHARD_BYTES) -> Iterator[Tensors]:
    """``wanted`` in their order, cut into files of ``limit`` bytes."""
    shard: Tensors = {}
    size = 0
    for name, shape in wanted.items():
        own = BF16.itemsize * math.prod(shape)
        if shard and size + own > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += own
    yield shard


def drawn(name: str, shape: tuple[int, ...], threads: ThreadPoolExecutor) -> NDArray[Any]:
    """The weights called ``name``; the same ones every time. Vectors are factors and stay 1."""
    values = np.ones(shape, BF16)
    if len(shape) == 2:
        flat, scale = values.reshape(-1), 1 / math.sqrt(shape[1])

        def draw(start: int) -> None:
            piece = flat[start : start + PIECE]
            random = np.random.default_rng([start, *name.encode()])
            piece[:] = random.standard_normal(len(piece), np.float32) * np.float32(scale)

        list(threads.map(draw, range(0, len(flat), PIECE)))
    return values
