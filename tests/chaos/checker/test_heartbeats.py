"""Which heartbeats can be one guest's, and which only two copies' of it."""

import random
from typing import Any

import pytest

from tests.chaos.checker.heartbeats import Beat, judge

A, B = "hv-a", "hv-b"
ROUND_S = 0.15


def watch(*rounds: dict[str, Any]) -> list[Beat]:
    """Beats as a watch sees them that reads host A, then B, once in every round."""
    return [
        Beat(host, counter, (i - 1) * ROUND_S + late_s, i * ROUND_S + late_s)
        for i, one in enumerate(rounds)
        for host, late_s in ((A, 0.0), (B, 0.01))
        for counter in one.get(host, ())
    ]


ONCE = {
    "it stays": watch({A: [7]}, {A: [8]}, {A: [9, 10]}),
    "there and back": watch({A: [7]}, {A: [8]}, {B: [9]}, {B: [10]}, {A: [11]}),
    "there and back between two rounds": watch({A: [7, 8, 11], B: [9, 10]}),
    "beats lost at the switch-over": watch({A: [100]}, {B: [104]}, {B: [105]}),
    "the source is read before its last beats, the destination after": watch(
        {A: [7], B: [9, 10]}, {A: [8]}, {B: [11]}
    ),
    "a reboot": watch({A: [50]}, {A: [51]}, {A: [0]}, {A: [1]}),
    "a reboot whose first beats are lost": watch({A: [50]}, {A: [2]}, {A: [3]}),
    "a stop, a start elsewhere, a move": watch({A: [50]}, {B: [0, 1]}, {B: [2, 3]}, {A: [4]}),
    "a reboot and a move between two rounds": watch({A: [50]}, {A: [0, 1], B: [2, 3]}, {B: [4]}),
    "a move and a reboot between two rounds": watch({A: [50]}, {B: [51, 0, 1]}, {A: [2], B: [3]}),
    "two reboots": watch({A: [50]}, {A: [0]}, {A: [0]}, {A: [1]}),
    "a pause": watch({A: [50]}, *[{}] * 100, {A: [51]}),
    "a gap of the watch itself": watch({A: [50]}, {A: [500]}),
    "nothing": watch(),
}

TWICE = {
    "both go on at once": (
        watch({A: [7]}, {A: [8], B: [8]}, {A: [9], B: [9]}),
        "heartbeat 8 of one boot on hv-a and on hv-b",
    ),
    "the copy goes on later": (
        watch({A: [7]}, {A: [8]}, {A: [9]}, {A: [10], B: [8]}, {B: [9]}),
        "heartbeat 8 of one boot on hv-a and on hv-b",
    ),
    "the source goes on after the move": (
        watch({A: [7]}, {B: [8]}, {B: [9]}, {B: [10]}, {A: [8]}),
        "heartbeat 8 of one boot on hv-b and on hv-a",
    ),
    "two in one file": (
        watch({A: [7]}, {A: [8]}, {A: [8]}, {A: [9]}, {A: [9]}),
        "heartbeat 8 of one boot twice on hv-a",
    ),
    "booted a second time elsewhere": (
        watch({A: [70]}, {A: [71]}, {B: [0]}, {A: [72]}, {B: [1]}, {A: [73]}, {B: [2]}),
        "heartbeat 73 on hv-a does not continue 0 on hv-b",
    ),
    "an older copy": (
        watch({A: [70]}, {A: [71]}, {B: [40]}, {B: [41]}),
        "heartbeat goes back from 71 on hv-a to 40 on hv-b without a boot",
    ),
}


@pytest.mark.parametrize("beats", ONCE.values(), ids=ONCE)
def test_one_guest_is_not_accused(beats: list[Beat]) -> None:
    assert judge(beats) == []


@pytest.mark.parametrize(("beats", "text"), TWICE.values(), ids=TWICE)
def test_two_copies_are_told_apart(beats: list[Beat], text: str) -> None:
    assert text in judge(beats)


@pytest.mark.parametrize("seed", range(20))
def test_a_guest_that_moves_and_reboots_at_random_is_never_accused_however_it_is_read(
    seed: int,
) -> None:
    dice = random.Random(seed)
    consoles: dict[str, list[tuple[float, int]]] = {A: [], B: []}
    host, counter, now_s = A, 0, 0.0
    for _ in range(400):
        now_s += 0.5
        consoles[host].append((now_s, counter))
        counter += 1
        if dice.random() < 0.1:
            host = B if host == A else A
            counter += dice.choice([0, 0, 1])
        if dice.random() < 0.05:
            counter = 0
            now_s += dice.uniform(0, 2)
    beats, read_to_s, at_s = [], {A: 0.0, B: 0.0}, 0.0
    while any(consoles.values()):
        for name, lines in consoles.items():
            # Sometimes the reader sleeps through several beats between one console and the next.
            at_s += dice.choice([0.01, 0.05, 0.1, 0.1, 1.3, 5.0])
            while lines and lines[0][0] <= at_s:
                beats.append(Beat(name, lines.pop(0)[1], read_to_s[name], at_s))
            read_to_s[name] = at_s
    assert judge(beats) == []


@pytest.mark.parametrize("seed", range(20))
def test_a_copy_that_goes_on_is_always_found(seed: int) -> None:
    dice = random.Random(seed)
    counter, offset, rounds = dice.randrange(4, 1000), dice.randrange(0, 60), []
    for i in range(80):
        rounds.append({A: [counter + i], **({B: [counter + i - offset]} if i >= offset else {})})
    assert judge(watch(*rounds)) != []
