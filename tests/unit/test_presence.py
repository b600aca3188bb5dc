"""Who is taken for silent, and who may say so."""

from __future__ import annotations

from remit_broker.core.presence import Beat, Presence


def presence() -> Presence:
    return Presence("me", 2.0)


def beats(who: Presence, *names: str, begin: int, end: int) -> None:
    """A heartbeat of each in every second."""
    for second in range(begin, end):
        for name in names:
            who.hear(Beat(name, 0.0), float(second))


def test_a_replica_that_says_nothing_is_silent_from_its_last_word_on():
    who = presence()
    beats(who, "me", "other", begin=0, end=10)
    beats(who, "me", begin=10, end=50)
    assert who.silence("other", 49.0) == 40.0 and who.silence("me", 49.5) == 0.5


def test_one_that_was_never_heard_is_silent_since_this_one_listens():
    who = presence()
    beats(who, "me", begin=100, end=110)
    assert who.silence("dead before", 109.0) == 9.0


def test_who_was_cut_off_holds_nobody_for_silent():
    who = presence()
    beats(who, "me", "other", begin=0, end=10)
    assert who.silence("other", 60.0) == 0.0, "it has not heard itself, so it cannot tell"
    who.hear(Beat("me", 0.0), 60.0)
    assert who.silence("other", 60.5) == 0.5, "from the moment it hears again, it begins anew"
    beats(who, "me", begin=61, end=101)
    assert who.silence("other", 100.0) == 40.0


def test_one_that_nobody_hears_at_first_judges_nobody():
    assert presence().silence("other", 1000.0) == 0.0


def test_whoever_says_goodbye_is_not_listed_any_more():
    who = presence()
    beats(who, "me", "other", begin=0, end=3)
    who.hear(Beat("other", 0.0, bye=True), 3.0)
    assert [peer.replica for peer in who.peers(3.0, 30.0)] == ["me"]
    assert who.silence("other", 3.5) > 0.0


def test_those_silent_for_long_are_forgotten():
    who = presence()
    beats(who, "other", begin=0, end=1)
    beats(who, "me", begin=0, end=100)
    who.forget(99.0, 50.0)
    assert [peer.replica for peer in who.peers(99.0, 1000.0)] == ["me"]
    assert who.silence("other", 99.0) == 99.0
