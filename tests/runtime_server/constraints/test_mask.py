import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from runtime_server.constraints.mask import Mask


@given(st.lists(st.booleans(), min_size=1, max_size=300), st.data())
def test_a_mask_lowers_what_is_not_allowed_and_nothing_else(allowed: list[bool], data: st.DataObject) -> None:
    bits = np.packbits(np.array(allowed), bitorder="little")
    mask = Mask(len(allowed))
    mask.fill(~bits)
    mask.fill(bits)
    assert [mask.allows(token_id) for token_id in range(len(allowed))] == allowed
    logits = np.arange(len(allowed), dtype=np.float32) - 3
    expected = np.where(allowed, logits, -np.inf)
    np.testing.assert_array_equal(np.minimum(logits, mask.ceiling), expected)
    banned = data.draw(st.frozensets(st.integers(0, len(allowed) - 1)))
    rest = any(allows for token_id, allows in enumerate(allowed) if token_id not in banned)
    assert mask.leaves_none(banned) is not rest
