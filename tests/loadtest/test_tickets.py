"""Every request is given out once, also to users of several processes, and the end is noticed."""

from __future__ import annotations

import itertools
from collections import deque

from loadtest.tickets import Ledger, Numbered, RemoteTickets, Ticket


def test_a_number_of_requests_is_given_out_once_each_and_its_end_said_once() -> None:
    ends: list[int] = []
    ledger = Ledger(3, None, lambda: ends.append(1))
    assert [ledger.take() for _ in range(4)] == [*(Ticket(n, None) for n in range(3)), None]
    for _ in range(2):
        ledger.finish()
    assert ends == [] and ledger.left == 1
    ledger.finish()
    assert ledger.take() is None
    assert ends == [1]


def test_the_end_of_the_arrivals_is_the_end_when_all_are_done() -> None:
    ends: list[int] = []
    ledger = Ledger(None, iter([0.5, 1.5]), lambda: ends.append(1))
    assert ledger.take() == Ticket(0, 0.5)
    ledger.finish()
    assert ledger.take() == Ticket(1, 1.5)
    assert ledger.take() is None and ends == []
    ledger.finish()
    assert ends == [1]


def test_a_closed_ledger_waits_for_what_is_under_way() -> None:
    ends: list[int] = []
    ledger = Ledger(None, None, lambda: ends.append(1))
    ledger.take()
    ledger.close()
    assert ledger.take() is None and ends == []
    ledger.finish()
    assert ends == [1]


def test_users_of_two_processes_get_all_requests_in_order_of_their_process() -> None:
    ledger = Ledger(20, None, lambda: None)
    remotes: list[RemoteTickets] = []
    post: deque[int] = deque()

    def ask(number: int) -> None:
        post.append(number)
        remotes_answer()

    def remotes_answer() -> None:
        remotes[post.popleft()].receive(ledger.take())

    remotes += [RemoteTickets(lambda n=n: ask(n), ahead=2) for n in (0, 1)]  # type: ignore[misc]
    found: list[list[int]] = [[], []]
    open_ones = {0, 1}
    while open_ones:
        for number in sorted(open_ones):
            ticket = remotes[number].take()
            if ticket is None:
                open_ones.discard(number)
            else:
                found[number].append(ticket.number)
    assert sorted(found[0] + found[1]) == list(range(20))
    assert all(numbers == sorted(numbers) for numbers in found)


def test_things_are_found_by_number_also_a_little_out_of_order_and_in_little_memory() -> None:
    things = Numbered(itertools.count(100))
    assert [things.at(n) for n in (0, 3, 1, 7, 5)] == [100, 103, 101, 107, 105]
    for number in range(10_000, 60_000, 3):  # a third of them are ours
        assert things.at(number) == 100 + number
    assert len(things._passed) < 10_000
