"""Epochs and sequence numbers between two actors."""

from __future__ import annotations

import pytest
from slipstream.protocol.codec import encode
from slipstream.protocol.errors import ProtocolError
from slipstream.protocol.events import PeerUp
from slipstream.protocol.internal import Cancel, Envelope
from slipstream.runtime.links import Links, LostMessage


def pair(left_epoch: int = 1, right_epoch: int = 2) -> tuple[Links, Links]:
    """Two actors that know each other."""
    left, right = Links("left", left_epoch), Links("right", right_epoch)
    assert left.peer_up("right", right_epoch)
    assert right.peer_up("left", left_epoch)
    return left, right


def word(number: int) -> Cancel:
    return Cancel([number])


def frame(
    number: int = 0, *, sender: str = "left", epoch: int = 1, receiver_epoch: int = 2, sequence: int = 0
) -> bytes:
    return encode(Envelope(sender, epoch, receiver_epoch, sequence, word(number)))


def test_messages_arrive_with_their_sender_in_the_order_of_their_numbers() -> None:
    left, right = pair()
    for number in range(5):
        assert right.open(left.seal("right", word(number))) == [("left", word(number))]
    assert right.stale == 0


def test_each_pair_of_actors_counts_for_itself_in_each_direction() -> None:
    left, right = pair()
    third = Links("third", 3)
    third.peer_up("right", 2)
    right.open(left.seal("right", word(0)))
    assert right.open(third.seal("right", word(1))) == [("third", PeerUp("third", 3)), ("third", word(1))]
    assert left.open(right.seal("left", word(2))) == [("right", word(2))]
    assert right.open(left.seal("right", word(3))) == [("left", word(3))]


def test_the_first_word_of_a_peer_that_nobody_told_of_comes_after_its_peer_up() -> None:
    right = Links("right", 2)
    assert right.open(frame(7)) == [("left", PeerUp("left", 1)), ("left", word(7))]
    assert right.open(frame(8, sequence=1)) == [("left", word(8))]


def test_the_first_word_of_a_new_incarnation_comes_after_its_peer_up_and_counts_from_zero() -> None:
    _, right = pair()
    right.open(frame(1, sequence=0))
    right.open(frame(2, sequence=1))
    assert right.open(frame(3, epoch=5)) == [("left", PeerUp("left", 5)), ("left", word(3))]
    assert right.open(frame(4, epoch=5, sequence=1)) == [("left", word(4))]


def test_a_peer_is_new_once_whoever_tells_of_it_first() -> None:
    _, right = pair()
    assert right.peer_up("left", 5)
    assert not right.peer_up("left", 5)
    assert right.open(frame(3, epoch=5)) == [("left", word(3))]


def test_news_of_an_older_incarnation_changes_nothing() -> None:
    left, right = pair(left_epoch=5)
    right.open(left.seal("right", word(0)))
    assert not right.peer_up("left", 4)
    assert right.open(left.seal("right", word(1))) == [("left", word(1))]


def test_a_word_of_an_older_incarnation_is_dropped_and_counted() -> None:
    _, right = pair()
    right.open(frame(1, epoch=5))
    for sequence in (0, 1, 99):
        assert right.open(frame(2, epoch=4, sequence=sequence)) == []
    assert right.stale == 3
    assert right.open(frame(3, epoch=5, sequence=1)) == [("left", word(3))]


@pytest.mark.parametrize("meant_for", [1, 3])
def test_a_word_that_is_meant_for_another_incarnation_of_the_receiver_is_dropped_and_counted(
    meant_for: int,
) -> None:
    right = Links("right", 2)
    assert right.open(frame(1, receiver_epoch=meant_for)) == []
    assert right.stale == 1
    assert "left" not in right.peers  # not even its sender is news: it speaks to someone else


def test_a_gap_between_two_living_actors_is_an_error_that_names_both_numbers() -> None:
    left, right = pair()
    right.open(left.seal("right", word(0)))
    left.seal("right", word(1))  # lost
    with pytest.raises(LostMessage, match=r"right expected message 1 of left \(epoch 1\) and got 2"):
        right.open(left.seal("right", word(2)))


def test_a_word_that_comes_twice_is_an_error_too() -> None:
    left, right = pair()
    sealed = left.seal("right", word(0))
    right.open(sealed)
    with pytest.raises(LostMessage, match="expected message 1 of left"):
        right.open(sealed)


def test_a_new_incarnation_whose_first_word_is_lost_is_a_gap() -> None:
    _, right = pair()
    with pytest.raises(LostMessage, match="expected message 0 of left"):
        right.open(frame(1, epoch=5, sequence=1))


def test_what_is_said_to_a_new_incarnation_counts_from_zero() -> None:
    left, _ = pair()
    left.seal("right", word(0))
    left.peer_up("right", 9)
    reborn = Links("right", 9)
    assert reborn.open(left.seal("right", word(1))) == [("left", PeerUp("left", 1)), ("left", word(1))]


def test_both_may_be_new_at_once_and_nothing_of_the_old_ones_gets_through() -> None:
    left, right = pair()
    late = [left.seal("right", word(number)) for number in range(3)]
    new_left, new_right = Links("left", 3), Links("right", 4)
    new_left.peer_up("right", 4)
    assert [new_right.open(sealed) for sealed in late] == [[], [], []]
    assert new_right.open(new_left.seal("right", word(5))) == [("left", PeerUp("left", 3)), ("left", word(5))]
    assert [new_right.stale, right.stale] == [3, 0]


def test_bytes_of_a_stranger_are_a_protocol_error_and_change_no_count() -> None:
    left, right = pair()
    with pytest.raises(ProtocolError):
        right.open(b"hello")
    assert right.open(left.seal("right", word(0))) == [("left", word(0))]
