"""How many transfers from one host at a time are good for it: a number that follows from how long they take."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

FIRST = 8
"""Transfers at a time from a host of which nothing is known."""

_ROUND_S = 1.0
_SMALL, _LARGE = 0.25, 0.5
# Long transfers that do not become longer by being many may take more of their time.
_BEARABLE = 0.7
_STEP, _BOLD = 1.5, 0.9
# A cut is large enough for its effect to be told from noise, and small enough for the link to stay busy.
_LEAST_CUT, _MOST_CUT = 0.75, 0.5
# The link may just have become slow by itself: then the verdict is wrong, and must not hold for long.
_FREE_S, _MOST_FREE_S = 4.0, 32.0
_FREE_ROUNDS = 4
# A link that carries no more than this for half as many transfers again or more is full.
_GAIN = 1.15
_SETTLE_S, _MOST_SETTLE_S = 1.0, 32.0
# Of the fall that a host shows which serves each connection at a pace of its own.
_NEARLY = 1.15
_REFUSED_S = 60.0


@dataclass(frozen=True, slots=True)
class _Trial:
    """A change whose effect on the rate tells what it is that the transfers share."""

    limit: int
    rate: float


@dataclass(frozen=True, slots=True)
class Ended:
    """A transfer that is over.

    Args:
        nbytes: that arrived.
        seconds: that it took.
        strain: its duration over its time limit.
    """

    nbytes: int
    seconds: float
    strain: float


class Limit:
    """Additive increase and multiplicative decrease by the *strain*: a transfer's duration over its own time limit.

    Transfers that share a link take longer in proportion to their number, so the strain says by how much their number
    may grow: it doubles in each round while the strain is below a quarter, then grows by half for as long as that
    brings more bytes per second, else by one, and from a strain of a half on it is cut (of seven tenths, as long as
    growth has brought more). Growth that brings no more at all is taken back: a full link only loses packets. A round
    is as many transfers as may run, or a second. What started before the last change says nothing about it.

    A cut is an experiment. Where the link is shared, the bytes that arrive per second stay the same. If they fall
    with the number of transfers, it is the host that takes its time for each: the cut is taken back, none follows
    for a while, each time for longer, and if they fell in proportion, the number may grow for as long as the bytes per
    second follow.

    Args:
        most: it never becomes larger.
        first: where it starts.
    """

    def __init__(self, most: int, first: int = FIRST) -> None:
        self._most = most
        self.value = min(first, most)
        self._epoch = self._last_cut = 0
        self._cut: _Trial | None = None
        self._growth: _Trial | None = None
        self._free_until = self._settled_until = self._careful_until = -math.inf
        self._scales = True
        self._free_s = _FREE_S
        self._settle_s = _SETTLE_S
        self._threshold = most
        self._started: float | None = None
        """When the first transfer of this round did."""
        self._peak = 0
        self._last_rate = 0.0
        self._new_round()

    def pressed(self) -> None:
        """Somebody had to wait because of it."""
        self._pressed = True

    def started(self, now: float, load: int) -> int:
        """A transfer starts, of now `load`; returns the epoch that it belongs to."""
        if self._started is None:
            self._started = now
        self._peak = max(self._peak, load)
        return self._epoch

    def ended(self, now: float, epoch: int, ended: Ended, running: Callable[[], float], waiting: bool) -> None:
        """A transfer is complete.

        Args:
            now: seconds.
            epoch: that it started in.
            ended: the transfer.
            running: gives the largest strain so far of those that still run.
            waiting: whether more could be started.
        """
        if epoch < self._epoch or self._started is None:
            return
        self._ended.append(ended)
        if len(self._ended) >= self.value or now - self._started >= _ROUND_S:
            self._end_round(now, max(_high(self._ended), running()), waiting)

    def late(self, now: float, epoch: int, ended: Ended) -> None:
        """A transfer reached its time limit while its bytes were arriving."""
        if epoch >= self._epoch:
            self._ended.append(ended)
        if self._growth is not None and now < self._free_until and epoch >= self._epoch:
            self._settle(now, self._growth.limit)
        elif epoch >= self._last_cut and now >= self._free_until:
            self._reduce(now, 1.0)

    def refused(self, now: float, epoch: int) -> None:
        """The host, which has answered lately, refused or dropped a connection: it takes fewer at a time."""
        if epoch < self._last_cut:
            return
        self._reduce(now, 1.0)
        self._cut = None
        self._threshold, self._careful_until = self.value, now + _REFUSED_S

    def _new_round(self) -> None:
        self._started = None
        self._ended: list[Ended] = []
        self._pressed = False
        self._peak = 0

    def _end_round(self, now: float, strain: float, waiting: bool) -> None:
        assert self._started is not None
        rate = self._rate()
        if self._cut is not None and waiting:
            self._judge_cut(now, rate, now - self._started)
        elif self._growth is not None and waiting:
            self._judge_growth(now, rate)
        if strain >= (_BEARABLE if self._scales else _LARGE) and now >= self._free_until:
            self._reduce(now, strain)
        elif self._pressed and now >= self._settled_until:
            self._grow(now, strain, rate)
        self._new_round()

    def _judge_cut(self, now: float, rate: float, round_s: float) -> None:
        assert self._cut is not None
        before, ratio = self._cut, self.value / self._cut.limit
        self._cut = None
        if rate >= before.rate * (1 + ratio) / 2:
            self._free_s = _FREE_S
            self._scales = False
            return
        self._free_until = now + max(self._free_s, _FREE_ROUNDS * round_s)
        self._free_s = min(2 * self._free_s, _MOST_FREE_S)
        if rate > before.rate * ratio * _NEARLY:
            self._settled_until = max(self._settled_until, self._free_until)
        self._change(before.limit)

    def _judge_growth(self, now: float, rate: float) -> None:
        assert self._growth is not None
        before, ratio = self._growth, self.value / self._growth.limit
        self._growth = None
        self._scales = rate >= before.rate * (1 + ratio) / 2
        if self._scales:
            self._settle_s = _SETTLE_S
        elif now < self._free_until or rate < before.rate * _GAIN:
            self._settle(now, before.limit)

    def _settle(self, now: float, value: int) -> None:
        """Takes growth back, and grows no more for a while, each time for longer."""
        self._growth = None
        self._settled_until = max(self._settled_until, now + self._settle_s)
        if now < self._free_until:
            self._settled_until = max(self._settled_until, self._free_until)
        self._settle_s = min(2 * self._settle_s, _MOST_SETTLE_S)
        self._change(value)

    def _grow(self, now: float, strain: float, rate: float) -> None:
        if now < self._free_until:
            self._try(math.ceil(self.value * _STEP), rate)
        elif now < self._careful_until and self.value >= self._threshold:
            self._change(self.value + (strain < _LARGE))
        elif strain < _SMALL:
            self._try(self.value * 2, rate)
        elif self._scales:
            # They take long by themselves: growth so far has brought more bytes, not longer transfers.
            self._try(max(self.value + 1, int(self.value * min(_STEP, _BOLD / strain))), rate)
        else:
            self._change(min(self.value + 1, int(self.value * _LARGE / strain)))

    def _try(self, value: int, rate: float) -> None:
        if value >= self.value * _STEP:
            self._growth = _Trial(self.value, rate)
        self._change(value)

    def _reduce(self, now: float, strain: float) -> None:
        in_use = max(1, min(self.value, self._peak or self.value))
        if in_use == 1:
            self._change(1)
            return
        if self._cut is None:
            self._cut = _Trial(in_use, self._rate())
        factor = max(_MOST_CUT, min(_LEAST_CUT, _LARGE / strain))
        self._change(max(1, int(in_use * factor)))
        self._growth = None
        self._last_cut = self._epoch

    def _change(self, value: int) -> None:
        value = max(1, min(value, self._most))
        if value != self.value:
            self.value = value
            self._epoch += 1
            self._new_round()

    def _rate(self) -> float:
        """Bytes per second that so many transfers get, to judge by those of this round: how long it took does not
        matter, since some of it may have passed with more or fewer of them."""
        if self._ended:
            seconds = sum(ended.seconds for ended in self._ended)
            self._last_rate = self._peak * sum(ended.nbytes + 1 for ended in self._ended) / max(seconds, 1e-3)
        return self._last_rate


def _high(ended: list[Ended]) -> float:
    """The ninth tenth of strains, or the worst of a few."""
    return sorted(one.strain for one in ended)[math.ceil(0.9 * len(ended)) - 1]
