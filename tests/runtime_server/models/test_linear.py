"""The order of a packed weight's bytes, as ``runtime_server/native/linear.h`` describes it."""

from __future__ import annotations

import numpy as np

from runtime_server.models.linear import PANEL, interleaved, pack
from runtime_server.models.quantize import BLOCK


def test_fp32_panels_hold_inputs_by_outputs() -> None:
    weight = np.arange(20 * 40, dtype=np.float32).reshape(20, 40)
    panels = pack(weight, "fp32").data.view(np.float32).reshape(2, 2 * BLOCK, PANEL)
    assert panels[0, 3, 5] == weight[5, 3]
    assert panels[1, 39, 2] == weight[18, 39]
    np.testing.assert_array_equal(panels[:, 40:], 0)
    np.testing.assert_array_equal(panels[1, :, 4:], 0)


def test_eight_bit_records_hold_scales_and_groups_of_four_inputs() -> None:
    weight = np.random.default_rng(0).integers(-127, 128, (PANEL, 2 * BLOCK)).astype(np.float32)
    weight[:, ::BLOCK], weight[:, 1::BLOCK] = 127, 50  # so that every scale is 1
    packed = pack(weight, "int8")
    assert (packed.bits, packed.out_features, packed.in_features) == (8, PANEL, 2 * BLOCK)
    records = packed.data.reshape(2, 2 * PANEL + BLOCK * PANEL)
    np.testing.assert_array_equal(records[:, : 2 * PANEL].copy().view(np.float16), 1)
    values = records[:, 2 * PANEL :].reshape(2, BLOCK // 4, PANEL, 4)
    for output, place in ((0, 0), (7, 33), (15, 63)):
        block, group, within = place // BLOCK, place % BLOCK // 4, place % 4
        assert values[block, group, output, within] == weight[output, place] + 128


def test_four_bit_records_hold_two_groups_in_a_byte() -> None:
    weight = np.random.default_rng(0).integers(-8, 8, (PANEL, BLOCK)).astype(np.float32)
    weight[:, 0], weight[:, 1] = -8, 7
    packed = pack(weight, "int8")
    assert packed.bits == 4
    halves = packed.data[: 4 * PANEL].view(np.float16).reshape(2, PANEL)
    np.testing.assert_array_equal(halves, [[1] * PANEL, [-8] * PANEL])
    values = packed.data[4 * PANEL :].reshape(BLOCK // 8, PANEL, 4)
    for output, place in ((0, 0), (3, 5), (15, 31)):
        pair = values[place // 8, output, place % 4]
        assert (pair >> 4 if place % 8 >= 4 else pair & 15) == weight[output, place] + 8


def test_gate_and_up_take_turns_by_panels() -> None:
    gate = np.ones((20, 3), np.float32)
    both = interleaved(gate, 2 * gate)
    assert both.shape == (4 * PANEL, 3)
    np.testing.assert_array_equal(both[:, 0], [1] * 16 + [2] * 16 + [1] * 4 + [0] * 12 + [2] * 4 + [0] * 12)
