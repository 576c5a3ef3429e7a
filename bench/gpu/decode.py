"""Streams that decode together, on Mantler's engine."""

from __future__ import annotations

from bench.gpu.engine import LoadedModel
from bench.gpu.figures import DecodeFigures, UnmeasuredError, decode_figures
from bench.gpu.load import WARM_TOKENS, Load, prompts


async def decode(model: LoadedModel, load: Load, batch: int) -> DecodeFigures:
    """The figures of ``batch`` streams. Raises :class:`~bench.gpu.figures.UnmeasuredError`.

    The prompts are computed before, and found in the cache but for their last token: all streams decode from the same
    step on.
    """
    if not model.holds(batch, load.context + 1 + load.new_tokens):
        raise UnmeasuredError("the keys and values do not fit the device's memory")
    begun = prompts(model.vocab_size, batch, load.context, f"decode {batch}")
    await model.answered(begun, 1)
    await model.answered([[*prompt, 0] for prompt in begun], WARM_TOKENS)
    before = model.host_work()
    streams = await model.answered([[*prompt, 1] for prompt in begun], load.new_tokens)
    return decode_figures(streams, load.context + 1, model.host_work().per_step_ms(before))
