"""The simulation of a mesh: the same for the same seed, and what it is there to show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.mesh_figures import Figures, membership_table, table
from bench.mesh_machines import BLOCK_BYTES, CHAT, SHARED, BlockCache, Streams
from bench.mesh_membership import measure_membership
from bench.mesh_simulation import Simulation, main, options

SMALL = ["--requests", "6000"]


def simulate(policy: str, *arguments: str) -> Figures:
    given = options().parse_args([*SMALL, *arguments])
    return Simulation(SHARED, policy, 4, 400, given).run(lambda: None)


def test_four_machines_hit_like_one_and_share_the_work() -> None:
    found = simulate("affinity")
    assert found.requests == 6000
    assert found.hit_rate >= 0.9 * found.single_hit_rate
    assert found.work_ratio < 1.3
    assert found.load_ratio < 1.3
    assert found.hit_rate > 1.1 * simulate("load").hit_rate


def test_the_same_seed_is_the_same_simulation() -> None:
    one, other = simulate("affinity"), simulate("affinity")
    assert (one.hit_rate, one.work_ratio, one.load_ratio) == (other.hit_rate, other.work_ratio, other.load_ratio)
    assert simulate("affinity", "--seed", "1").hit_rate != one.hit_rate


def test_facades_that_know_each_other_by_reports_only() -> None:
    assert simulate("affinity", "--facades", "3").work_ratio < 1.3


def test_turns_grow_and_their_blocks_are_their_text() -> None:
    streams = Streams(CHAT, machines=4, seed=0)
    turn = streams.first()
    for number in range(1, CHAT.turns + 1):
        assert turn.number == number
        assert sum(map(len, turn.text)) == len(turn.blocks) * BLOCK_BYTES
        before, turn = turn, streams.following(turn)
        assert (turn.blocks[: len(before.blocks)] == before.blocks) == (number < CHAT.turns)
    assert turn.stream == before.stream + 1


def test_a_cache_lets_go_of_the_ends_of_prompts_first() -> None:
    cache = BlockCache(4)
    assert cache.take((1, 2, 3)) == 0
    assert cache.take((1, 2, 9)) == 2
    assert cache.take((7,)) == 0
    assert cache.take((1, 2, 3)) == 2


def test_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = ["--machines", "2", "--streams-per-machine", "5", "--requests", "60", "--workloads", "skewed"]
    monkeypatch.setattr("sys.argv", ["mesh_simulation", *arguments, "--json"])
    main()
    printed = json.loads(capsys.readouterr().out)
    found = [Figures(**one) for one in printed["simulations"]]
    assert [one.policy for one in found] == ["affinity", "load"]
    assert len(table(found).splitlines()) == 4
    assert len(membership_table([measure_membership(3)]).splitlines()) == 3
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(printed), encoding="utf-8")
    picture = tmp_path / "mesh.svg"
    monkeypatch.setattr("sys.argv", ["mesh_simulation", *arguments, "--add", str(earlier), "--plot", str(picture)])
    main()
    assert capsys.readouterr().out.count("skewed") == 4


def test_membership_of_a_thousand_machines_changes_in_time() -> None:
    found = measure_membership(1000)
    assert max(found.join_us, found.leave_us, found.report_us) < 1000
    assert found.all_join_ms < 1000, "a bound for a slow machine; docs/scaling.md has the figures"
