"""Which replica gets a request: the one with its states, within 1.25 times the mean."""

from __future__ import annotations

import math
import random

import pytest

from qwonnx.handlers.routing.affinity import Affinity
from qwonnx.handlers.routing.replicas import Address, Replica, Replicas

pytestmark = pytest.mark.fast


def replicas(count: int) -> Replicas:
    found = Replicas()
    found.update([Address("10.0.0.1", 8000 + number) for number in range(count)])
    for each in found.all:
        each.is_ready = True
    return found


def chosen(found: Replicas, affinity: Affinity) -> Replica:
    replica = found.choose(affinity)
    assert replica is not None
    return replica


def conversation(number: int, beginning: bytes | None = None) -> Affinity:
    return Affinity(beginning, number.to_bytes(16, "big"))


def test_a_conversation_keeps_its_replica_and_new_ones_are_spread() -> None:
    found = replicas(4)
    first = {number: chosen(found, conversation(number)) for number in range(400)}
    assert all(chosen(found, conversation(number)) is each for number, each in first.items())
    shares = [sum(each is replica for each in first.values()) for replica in found.all]
    assert min(shares) > 60


def test_conversations_with_one_beginning_share_a_replica_until_it_has_its_share() -> None:
    found = replicas(2)
    homes = [chosen(found, conversation(number, b"tools")) for number in range(20)]
    assert len(set(homes)) == 1
    for number in range(20, 60):
        chosen(found, conversation(number, b"tools")).in_flight += 1
    loads = sorted(each.in_flight for each in found.all)
    assert loads == [15, 25]
    assert found.spilled == 15


@pytest.mark.parametrize("count", [2, 3, 7])
def test_no_replica_ever_has_more_than_its_share(count: int) -> None:
    chance, found = random.Random(7), replicas(count)
    running: list[Replica] = []
    for _ in range(3000):
        if running and chance.random() < 0.45:
            running.pop(chance.randrange(len(running))).in_flight -= 1
            continue
        most = math.ceil(1.25 * (len(running) + 1) / count)
        replica = chosen(found, conversation(chance.randrange(50), chance.choice([None, b"a", b"b"])))
        assert replica.in_flight < most
        replica.in_flight += 1
        running.append(replica)


def test_fewer_replicas_move_only_the_conversations_of_the_one_that_went() -> None:
    found = replicas(5)
    before = {number: chosen(found, conversation(number)).address for number in range(300)}
    gone = found.all[2].address
    found.update([each.address for each in found.all if each.address != gone])
    after = {number: chosen(found, conversation(number)).address for number in range(300)}
    assert all(after[number] == address for number, address in before.items() if address != gone)
    assert len({after[number] for number, address in before.items() if address == gone}) == 4


def test_what_is_not_ready_or_was_tried_is_not_chosen() -> None:
    found = replicas(2)
    first, second = found.all
    assert found.choose(conversation(1), (first, second)) is None
    assert found.choose(conversation(1), (first,)) is second
    first.is_ready = second.is_ready = False
    assert found.choose(conversation(1)) is None
    assert found.choose(Affinity()) is None


def test_a_request_without_affinity_goes_where_least_is_running() -> None:
    found = replicas(3)
    found.all[0].in_flight, found.all[1].in_flight = 2, 1
    assert chosen(found, Affinity()) is found.all[2]
    assert found.num_conversations == 0


def test_addresses_are_written_as_urls() -> None:
    assert str(Address("::1", 80)) == "http://[::1]:80"
    assert str(Address("host", 443, tls=True)) == "https://host:443"
