"""How much a limited process may take for one question."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """Time and address space grow with the question."""

    timeout_s: float
    memory_bytes: int
    """Address space, the interpreter's own included. No answer is longer."""
    stack_bytes: int
    timeout_s_per_mb: float = 0.0
    memory_per_byte: int = 0

    def timeout_for(self, question_bytes: int) -> float:
        """Seconds until a question of this length must be answered."""
        return self.timeout_s + self.timeout_s_per_mb * question_bytes / 1e6

    def memory_for(self, question_bytes: int) -> int:
        """Bytes of address space while a question of this length is answered."""
        return self.memory_bytes + self.memory_per_byte * question_bytes
