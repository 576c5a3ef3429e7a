"""Long prompts that arrive while others decode, on Mantler's engine."""

from __future__ import annotations

from bench.gpu.engine import LoadedModel
from bench.gpu.figures import LONG, MixedFigures, UnmeasuredError, mixed_figures
from bench.gpu.load import LONG_NEW_TOKENS, Load, long_prompts, prompts


async def mixed(model: LoadedModel, load: Load) -> MixedFigures:
    """The figures of the load. Raises :class:`~bench.gpu.figures.UnmeasuredError`.

    A long prompt arrives when the one before it has been answered, so that each meets the streams alone.
    """
    if not model.holds(load.streams + 1, load.longest):
        raise UnmeasuredError("the keys and values do not fit the device's memory")
    begun = prompts(model.vocab_size, load.streams, load.context, "mixed")
    await model.answered(begun, 1)
    others = model.ask([[*prompt, 0] for prompt in begun], load.patience)
    try:
        for answer in others:
            await answer.first.wait()
        asked = [await model.answered([long], LONG_NEW_TOKENS, LONG) for long in long_prompts(model.vocab_size, load)]
    finally:
        await model.dismiss(others)
    # The first one was to warm up.
    return mixed_figures([answer.stream for answer in others] + [stream for [stream] in asked[1:]], load.long_tokens)
