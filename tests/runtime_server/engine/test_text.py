from hypothesis import given
from hypothesis import strategies as st

from runtime_server.engine.text import Detokenizer, StopMatcher

small_text = st.text(alphabet="ab\n", max_size=24)
stop_lists = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=4)


def naive_cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Text up to the stop string that ends first; the longest of those that end there."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(st.lists(small_text, max_size=8), stop_lists)
def test_stop_strings_are_found_across_pieces(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    sent: list[str] = []
    stopped_by = None
    for piece in pieces:
        released = matcher.feed(piece)
        sent.append(released.text)
        stopped_by = released.stopped_by
        if stopped_by is not None:
            break
    if stopped_by is None:
        sent.append(matcher.flush())
    assert ("".join(sent), stopped_by) == naive_cut("".join(pieces), stops)


@given(st.lists(small_text, max_size=8), stop_lists)
def test_no_more_is_held_back_than_could_be_a_stop_string(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    text = sent = ""
    for piece in pieces:
        released = matcher.feed(piece)
        if released.stopped_by is not None:
            return
        text += piece
        sent += released.text
        held = text[len(sent) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


@given(st.text(max_size=40), st.data())
def test_characters_come_whole_however_their_bytes_are_cut(text: str, data: st.DataObject) -> None:
    encoded = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=12)))
    pieces = [encoded[a:b] for a, b in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]
    detokenizer = Detokenizer(pieces)
    parts = [detokenizer.feed(i) for i in range(len(pieces))]
    assert "".join(parts) == text
    assert detokenizer.flush() == ""
    for end in range(len(pieces)):
        # Everything that is whole has been given out, and nothing else.
        assert "".join(parts[: end + 1]) == b"".join(pieces[: end + 1]).decode(errors="ignore")


def test_a_cut_character_becomes_a_replacement_at_the_end_only() -> None:
    detokenizer = Detokenizer([b"caf\xc3", b"\xa9", b"\xe2\x82"])
    assert detokenizer.feed(0) == "caf"
    assert detokenizer.feed(1) == "é"
    assert detokenizer.feed(2) == ""
    assert detokenizer.flush() == "�"


def test_an_id_beyond_the_vocabulary_is_silent() -> None:
    assert Detokenizer([b"a"]).feed(7) == ""
