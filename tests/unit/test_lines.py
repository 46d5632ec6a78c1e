"""Who may begin, and where the others stand."""

from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.lines import Room, Wish, form_lines, ordinal

NAMES = UUID(int=7)


def wish(name: str, src: str, dst: str, *, inside: bool = False) -> Wish:
    rooms = (
        Room(("link", src, dst), 1),
        Room(("source", src), 1 if src != "wide" else 3),
        Room(("destination", dst), 2),
    )
    return Wish(uuid5(NAMES, name), rooms, is_inside=inside)


def told(*wishes: Wish) -> list[str]:
    stands = form_lines(wishes)
    return [
        "goes" if wait is None else f"{ordinal(wait.place)} at {' '.join(wait.room.name)}"
        for wait in stands.values()
    ]


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        ([wish("1", "a", "c")], ["goes"]),
        # One leaves a source at a time, and the others have their order.
        (
            [wish("0", "a", "c", inside=True), wish("1", "a", "d"), wish("2", "a", "e")],
            ["1st at source a", "2nd at source a"],
        ),
        # A full destination: who has got the source's place keeps it, and nobody passes him there.
        (
            [
                wish("0", "x", "c", inside=True),
                wish("00", "y", "c", inside=True),
                wish("1", "a", "c"),
                wish("2", "a", "d"),
            ],
            ["1st at destination c", "1st at source a"],
        ),
        # Who still waits for his source holds nobody up at the destination.
        (
            [wish("0", "a", "d", inside=True), wish("1", "a", "c"), wish("2", "b", "c")],
            ["1st at source a", "goes"],
        ),
        # Two free places at a destination, three who want them: the earlier tickets go.
        (
            [wish("1", "a", "c"), wish("2", "b", "c"), wish("3", "d", "c")],
            ["goes", "goes", "1st at destination c"],
        ),
        # A busy link is waited for outside the source, whose other places stay free.
        (
            [wish("0", "wide", "c", inside=True), wish("1", "wide", "c"), wish("2", "wide", "d")],
            ["1st at link wide c", "goes"],
        ),
    ],
)
def test_lines(wishes: list[Wish], expected: list[str]) -> None:
    assert told(*wishes) == expected


HOSTS = st.sampled_from("abcd")
MOVES = st.lists(
    st.tuples(HOSTS, HOSTS).filter(lambda move: move[0] != move[1]), min_size=1, max_size=30
)


@given(MOVES, st.randoms(use_true_random=False))
def test_everybody_gets_in_and_nobody_is_passed_at_his_source(
    moves: list[tuple[str, str]], chance: object
) -> None:
    """Whoever comes first goes first from his source, and no limit is ever passed."""
    waiting = [wish(str(n), src, dst) for n, (src, dst) in enumerate(moves)]
    sources = {w.operation_id: src for w, (src, _) in zip(waiting, moves, strict=True)}
    order = [w.operation_id for w in waiting]
    inside: list[Wish] = []
    went: list[UUID] = []
    for _ in range(3 * len(moves)):
        stands = form_lines([*inside, *waiting])
        going = [w for w in waiting if stands[w.operation_id] is None]
        went += [w.operation_id for w in going]
        waiting = [w for w in waiting if stands[w.operation_id] is not None]
        inside += [Wish(w.operation_id, w.rooms, is_inside=True) for w in going]
        rooms = [room for w in inside for room in w.rooms]
        assert all(rooms.count(room) <= room.limit for room in rooms)
        if not inside:
            break
        inside.pop(chance.randrange(len(inside)))  # type: ignore[attr-defined]
    assert len(went) == len(moves), "somebody never went"
    for src in set(sources.values()):
        of_src = [each for each in went if sources[each] == src]
        # The link is waited for outside the source's line; with one place at the source it is free.
        assert of_src == [each for each in order if sources[each] == src]


@pytest.mark.parametrize(
    ("number", "said"),
    [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (22, "22nd")],
)
def test_ordinals(number: int, said: str) -> None:
    assert ordinal(number) == said
