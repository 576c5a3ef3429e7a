"""Whether a model fits, and what would fit if it does not. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from runtime_server.models.footprint import Footprint, megabytes


@dataclass(frozen=True, slots=True)
class Fit:
    """A model with its wishes, beside the memory that there is."""

    footprint: Footprint
    streams: int
    context: int
    """Tokens of each stream, prompt and output together."""
    usable_bytes: int

    @property
    def cache_bytes(self) -> int:
        """Keys and values of all streams."""
        return self.footprint.cache_bytes(self.streams, self.context)

    @property
    def total_bytes(self) -> int:
        """Everything together."""
        return self.footprint.total_bytes(self.streams, self.context)

    @property
    def fits(self) -> bool:
        """Whether there is as much."""
        return self.total_bytes <= self.usable_bytes

    def ways_out(self, smaller: Mapping[str, Footprint]) -> Iterator[str]:
        """What would fit instead, in words.

        Args:
            smaller: the footprint by each other quantization of the device.
        """
        most = self.footprint.most_streams(self.context, self.usable_bytes)
        longest = self.footprint.longest_context(self.streams, self.usable_bytes)
        if most:
            yield f"--streams {most}, of {self.context} tokens each"
        if longest:
            yield f"--context {longest}, for {self.streams} streams" if self.streams > 1 else f"--context {longest}"
        for quantization, footprint in smaller.items():
            total = footprint.total_bytes(self.streams, self.context)
            shorter = footprint.longest_context(1, self.usable_bytes)
            if total <= self.usable_bytes:
                yield f"--quantization {quantization}, {megabytes(total)} in all"
            elif not (most or longest) and shorter:
                yield f"--quantization {quantization} --streams 1 --context {min(shorter, self.context)}"
