"""Structured outputs of the default model; ``python -m tests.structured_outputs`` runs the whole corpus."""

from pathlib import Path

import pytest

from tests.conftest import model_folder
from tests.structured_outputs import outcomes

pytestmark = pytest.mark.model

SAMPLE = list(range(0, 200, 13))


async def test_documents_of_the_default_model_are_valid(model_home: Path) -> None:
    found = await outcomes(model_home, model_folder(model_home), SAMPLE)
    assert {item.verdict for item in found.values()} <= {"valid", "length", "refused"}
    assert sum(item.verdict == "valid" for item in found.values()) >= len(SAMPLE) * 3 // 4
