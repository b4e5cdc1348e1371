"""Whose turn it is: order of arrival on each GPU, in generated queues and in the cases that people meet."""

from __future__ import annotations

import random
from typing import Any

import pytest

from remote_train.host.gpu_users import describe_wait
from remote_train.host.turns import (
    choose_shared,
    choose_turn,
    count_wanted,
    find_missing,
    find_place,
    is_foreign_busy,
    list_candidates,
    make_wish,
)
from remote_train.turn_words import render_wait

GB = 10**9


def make_gpus(count: int, busy: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    return [
        {"index": index, "uuid": f"GPU-{index}", "memory_used_bytes": 0, "busy": index in busy}
        for index in range(count)
    ]


def ticket(number: int, wanted: object, *gpus: int) -> dict[str, Any]:
    """`wanted`: a number, names, or (a number, names) for so many of these."""
    held = [f"GPU-{index}" for index in gpus]
    wish = {"count": wanted[0], "wanted": wanted[1]} if isinstance(wanted, tuple) else {"wanted": wanted}
    return {"number": number, "run": f"run{number}", "since": 0.0, "gpus": held, **wish}


@pytest.mark.parametrize(
    ("tickets", "busy", "chosen"),
    [
        ([ticket(1, 1), ticket(2, 1)], (), {1: [0], 2: [1]}),
        ([ticket(1, 1, 0), ticket(2, 1)], (1,), {}),
        # the first wants two, one is free: nobody behind it may have that one
        ([ticket(1, 1, 0), ticket(2, 2), ticket(3, 1), ticket(4, ["1"])], (), {}),
        # the first waits for GPU 0 by name: who can do with GPU 1 goes before it
        ([ticket(1, ["0"], 0), ticket(2, ["0"]), ticket(3, 1)], (), {3: [1]}),
        ([ticket(1, ["0"], 0), ticket(2, ["GPU-0"]), ticket(3, ["0"]), ticket(4, ["1"])], (), {4: [1]}),
        ([ticket(1, 3), ticket(2, 1)], (), {2: [0]}),  # more than there are (any more) hold up nobody
        ([ticket(1, ["7"]), ticket(2, 2)], (), {2: [0, 1]}),
        ([ticket(2, 1), ticket(1, 2)], (), {1: [0, 1]}),  # by number, in whatever order they are read
        ([ticket(1, (1, ["0", "1"]))], (0,), {1: [1]}),  # one of these is free
        ([ticket(1, (1, ["1", "0"]))], (), {1: [1]}),  # of the free ones the first that it names
        ([ticket(1, (1, ["1"]), 1), ticket(2, (1, ["1"])), ticket(3, 1)], (), {3: [0]}),
        ([ticket(1, (2, ["0", "1", "7"]), 0), ticket(2, (2, ["0", "1", "7"])), ticket(3, 1)], (), {}),
        ([ticket(1, (2, ["1", "7"])), ticket(2, 1)], (), {2: [0]}),  # no two of these are there any more
    ],
)
def test_the_order(
    tickets: list[dict[str, Any]], busy: tuple[int, ...], chosen: dict[int, list[int]]
) -> None:
    wanted = {number: [f"GPU-{index}" for index in indices] for number, indices in chosen.items()}
    assert choose_turn(tickets, make_gpus(2, busy)) == wanted


def test_named_gpus_come_in_the_order_they_were_named_in() -> None:
    gpus = make_gpus(3)
    assert [gpu["index"] for gpu in list_candidates(ticket(1, ["2", "GPU-0"]), gpus)] == [2, 0]
    assert [gpu["index"] for gpu in list_candidates(ticket(1, (1, ["2", "GPU-0"])), gpus)] == [2, 0]
    assert [gpu["index"] for gpu in list_candidates(ticket(1, 2), gpus)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("asked", "wish"),
    [
        ({"count": 2}, {"wanted": 2}),
        ({"ids": [1, "GPU-0"]}, {"wanted": ["1", "GPU-0"]}),
        ({"count": 1, "among": ["GPU-1", "GPU-0"]}, {"wanted": ["GPU-1", "GPU-0"], "count": 1}),
    ],
)
def test_a_plan_becomes_a_ticket(asked: dict[str, Any], wish: dict[str, Any]) -> None:
    assert make_wish(asked) == wish


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (2, None),
        (["1", "GPU-0"], None),
        (3, "3 GPUs wanted, this host has 2"),
        (["0", "7"], "there is no GPU 7 on this host"),
        ((1, ["0", "7"]), None),
        ((2, ["0", "7"]), "2 GPUs wanted of 2 that are named, this host has 1"),
    ],
)
def test_what_is_not_there_is_a_sentence_and_why_it_waits(wanted: object, words: str | None) -> None:
    gpus = make_gpus(2)
    mine = ticket(1, wanted)
    assert find_missing(mine, gpus) == words
    assert describe_wait(mine, [mine], gpus)["why"] == words


def test_who_waits_for_nobody_gets_the_least_used() -> None:
    gpus = make_gpus(3, busy=(0,))
    others = [ticket(1, 1, 1), ticket(2, 1, 2), ticket(3, 1, 2), ticket(4, 3)]
    assert choose_shared(ticket(5, 2), others, gpus) == ["GPU-0", "GPU-1"]
    assert choose_shared(ticket(5, ["2"]), others, gpus) == ["GPU-2"]
    assert choose_shared(ticket(5, 4), others, gpus) == []
    assert choose_shared(ticket(5, (1, ["2", "1"])), others, gpus) == ["GPU-1"]
    assert choose_shared(ticket(5, (1, ["2", "1"])), [], gpus) == ["GPU-2"]


def test_the_freest_comes_first() -> None:
    gpus = make_gpus(2)
    gpus[0]["memory_used_bytes"] = GB
    assert choose_turn([ticket(1, 1)], gpus) == {1: ["GPU-1"]}


def make_case(chance: random.Random) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return tickets of which some hold GPUs, and the GPUs."""
    count = chance.randint(1, 6)
    gpus = make_gpus(count, tuple(index for index in range(count) if chance.random() < 0.2))
    free = [gpu["index"] for gpu in gpus]
    tickets = []
    for number in range(1, chance.randint(1, 9)):
        some = chance.sample(range(count), chance.randint(1, count))
        names, part = [str(index) for index in some], chance.randint(1, len(some))
        need, wanted = chance.choice([(len(some), len(some)), (len(some), names), (part, (part, names))])
        holds = chance.random() < 0.4
        given = [index for index in some if index in free][:need] if holds else []
        if len(given) < need:
            given = []
        free = [index for index in free if index not in given]
        tickets.append(ticket(number, wanted, *given))
    return tickets, gpus


def test_generated_queues_share_nothing_and_overtake_nobody() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(3000):
        tickets, gpus = make_case(chance)
        chosen = choose_turn(tickets, gpus)
        given = [uuid for uuids in chosen.values() for uuid in uuids]
        held = [uuid for each in tickets for uuid in each["gpus"]]
        assert len(set(given + held)) == len(given + held)
        assert not {gpu["uuid"] for gpu in gpus if gpu["busy"]} & set(given)
        for each in tickets:
            mine = {gpu["uuid"] for gpu in list_candidates(each, gpus)}
            if each["number"] in chosen:
                assert set(chosen[each["number"]]) <= mine
                assert len(chosen[each["number"]]) == count_wanted(each, gpus)
            elif not each["gpus"]:  # it waits: nobody later may have what it could be given
                later = [uuids for number, uuids in chosen.items() if number > each["number"]]
                assert not mine & {uuid for uuids in later for uuid in uuids}


def test_generated_queues_come_to_an_end_in_order() -> None:
    """Whoever waits is served once those before have ended: nobody starves, however many come behind."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(300):
        tickets, gpus = make_case(chance)
        gpus = [dict(gpu, busy=False) for gpu in gpus]
        first = next((each for each in tickets if not each["gpus"]), None)
        if first is None:
            continue
        last = 100
        for _ in range(len(tickets) + 1):  # each round one that holds GPUs ends, and two come
            for number, uuids in choose_turn(tickets, gpus).items():
                next(each for each in tickets if each["number"] == number)["gpus"] = uuids
            if first["gpus"]:
                break
            ends = next(each for each in tickets if each["gpus"] and each["number"] < 100)
            tickets.remove(ends)
            tickets += [ticket(last := last + 1, 1), ticket(last := last + 1, ["0"])]
        assert first["gpus"]


def test_the_place_counts_those_that_wait_for_the_same() -> None:
    tickets = [ticket(1, 1, 0), ticket(2, ["0"]), ticket(3, ["1"], 1), ticket(4, ["0"]), ticket(5, 1)]
    gpus = make_gpus(2)

    assert find_place(tickets[1], tickets, gpus) == (1, 3)
    assert find_place(tickets[3], tickets, gpus) == (2, 3)
    assert find_place(tickets[4], tickets, gpus) == (3, 3)
    wait = describe_wait(tickets[3], tickets, gpus)
    assert (wait["gpus"], wait["place"], wait["of"]) == ([0], 2, 3)
    assert [item["run"] for item in wait["ahead"]] == ["run2"]
    assert wait["users"] == [{"gpu": 0, "run": "run1", "since": 0.0}]
    some = ticket(6, (1, ["1", "0"]))
    wait = describe_wait(some, [*tickets, some], gpus)
    assert render_wait(wait, "box").startswith(
        "waiting for one of GPUs 0, 1 of box: place 4 of 4, behind run2"
    )


def process(*, compute: bool, draws: bool, used: float | None) -> dict[str, Any]:
    return {"pid": 1, "compute": compute, "draws": draws, "memory_bytes": used}


@pytest.mark.parametrize(
    ("processes", "used", "busy"),
    [
        ([], 0.4 * GB, False),  # what the driver takes for itself
        ([], 2 * GB, False),  # a desktop, seen from a container
        ([], 3 * GB, True),  # somebody whom a container does not show
        ([process(compute=False, draws=True, used=1 * GB)], 5 * GB, False),  # Xorg, and much in textures
        ([process(compute=True, draws=True, used=0.3 * GB)], 1 * GB, False),  # a browser that decodes video
        ([process(compute=True, draws=True, used=None)], 1 * GB, False),
        ([process(compute=True, draws=True, used=6 * GB)], 7 * GB, True),  # a renderer
        ([process(compute=True, draws=False, used=0.1 * GB)], 1 * GB, True),
        ([process(compute=True, draws=False, used=None)], 1 * GB, True),
    ],
)
def test_what_is_busy(processes: list[dict[str, Any]], used: float, busy: bool) -> None:
    gpu = {"memory_bytes": 12 * GB, "memory_used_bytes": used, "processes": processes}
    assert is_foreign_busy(gpu) is busy


def test_unseen_memory_of_a_large_card_is_somebody_s_though_it_is_a_small_part() -> None:
    gpu = {"memory_bytes": 80 * GB, "memory_used_bytes": 5 * GB, "processes": []}
    assert is_foreign_busy(gpu)
    assert not is_foreign_busy({**gpu, "memory_used_bytes": 1 * GB})
