import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from runtime_server.constraints.mask import Mask


@given(st.lists(st.booleans(), min_size=1, max_size=300), st.data())
def test_a_mask_knows_what_its_bits_allow(allowed: list[bool], data: st.DataObject) -> None:
    mask = Mask(np.packbits(np.array(allowed), bitorder="little"))
    assert [mask.allows(token_id) for token_id in range(len(allowed))] == allowed
    banned = data.draw(st.frozensets(st.integers(0, len(allowed) - 1)))
    rest = any(allows for token_id, allows in enumerate(allowed) if token_id not in banned)
    assert mask.leaves_none(banned) is not rest
