"""Where the steps of a running runtime's engines spend their time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from mantler.cli.models import ask
from mantler.cli.terminal import note, print_json, print_table
from mantler.config import GrpcSettings
from mantler.messages import EngineProfile, ModelInfo, StepProfile

_HEADERS = (
    "requests", "doing", "steps", "prompt tokens", "new tokens", "schedule", "run", "sample", "publish", "outside run",
)  # fmt: skip


def show_profile(address: str, settings: GrpcSettings, json: bool) -> None:
    """Prints the counters of each model that the runtime at ``address`` has loaded. Raises like ``ask``."""
    infos = asyncio.run(ask(address, settings))
    if json:
        print_json([_as_json(info.id, info.deployment.profile) for info in infos if info.deployment])
        return
    shown = list(_show(infos))
    if not shown:
        note(f"The runtime at {address} has run no step yet.")


def outside_share(steps: StepProfile) -> float:
    """The share of the time that the device did not have."""
    return 1 - steps.run_s / steps.total_s if steps.total_s else 0.0


def _as_json(model: str, profile: EngineProfile) -> dict[str, object]:
    rows = [{**asdict(steps), "outside_run_share": outside_share(steps)} for steps in profile.steps]
    return {"model": model, **asdict(profile), "steps": rows}


def _show(infos: Iterable[ModelInfo]) -> Iterator[str]:
    for info in infos:
        profile = None if info.deployment is None else info.deployment.profile
        if profile is None or not profile.steps:
            continue
        print_table(_HEADERS, [_row(steps) for steps in profile.steps])
        computed, cached = sum(steps.prompt_tokens for steps in profile.steps), profile.cached_prompt_tokens
        note(
            f"{info.id}, since it was loaded; times are means per step. Of its prompts' tokens {computed} were "
            f"computed and {cached} cached; requests gave their memory up {profile.preemptions} times."
        )
        yield info.id


def _row(steps: StepProfile) -> tuple[str, ...]:
    most = steps.max_sequences
    parts = (steps.schedule_s, steps.run_s, steps.sample_s, steps.publish_s)
    return (
        str(most) if most <= 2 else f"{most // 2 + 1}–{most}",
        "prompts" if steps.prompts else "decoding",
        str(steps.steps),
        str(steps.prompt_tokens),
        str(steps.sampled_tokens),
        *(f"{part / steps.steps * 1e3:.2f} ms" for part in parts),
        f"{outside_share(steps):.1%}",
    )
