"""An adaptive limit of concurrent transfers from one host (additive increase, multiplicative decrease).

Input: the start and the end of each transfer, with its bytes and its duration. Output: `ConcurrencyLimit.value`, the
number of transfers that may run at a time. All times are arguments, in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

INITIAL_LIMIT = 8
"""Initial limit for a host of which nothing is known."""

_ROUND_S = 1.0
# Duration ratios (see `ConcurrencyLimit`): below the first the limit is doubled, from the second on it is cut.
_LOW_RATIO, _HIGH_RATIO = 0.25, 0.5
# Replaces the second ratio while growth has raised the bytes per second: then the transfers are slow, but not because
# they are many.
_HIGH_RATIO_SCALING = 0.7
# Factor of a growth step, and the duration ratio that such a step may reach.
_GROWTH_FACTOR, _GROWTH_TARGET = 1.5, 0.9
# Factors of a cut: its effect must be distinguishable from noise, and the link must stay busy.
_WEAKEST_CUT, _STRONGEST_CUT = 0.75, 0.5
# Seconds without cuts after a cut that was taken back, first and at most. They are few, since the conclusion may be
# wrong: the link may have become slower by itself at the same time.
_NO_CUT_S, _MAX_NO_CUT_S = 4.0, 32.0
_NO_CUT_ROUNDS = 4
# If a growth step raises the bytes per second by a smaller factor than this, the link is full.
_MIN_GAIN = 1.15
# Seconds without growth after a growth step that was taken back, first and at most.
_NO_GROWTH_S, _MAX_NO_GROWTH_S = 1.0, 32.0
# Tolerance when a fall of the rate is compared with the cut: a host that serves each connection at a fixed rate shows
# a fall in proportion to the cut.
_TOLERANCE = 1.15
# Seconds of slow growth after a refused connection.
_SLOW_GROWTH_S = 60.0


@dataclass(frozen=True, slots=True)
class _Trial:
    """The limit and the rate (bytes per second) before a change, to judge the change by its effect on the rate."""

    limit: int
    rate: float


@dataclass(frozen=True, slots=True)
class FinishedTransfer:
    """A transfer that has ended.

    Args:
        nbytes: bytes that arrived.
        seconds: its duration.
        duration_ratio: its duration divided by its time limit.
    """

    nbytes: int
    seconds: float
    duration_ratio: float


class ConcurrencyLimit:
    """The limit of one host, controlled by the *duration ratio*: the duration of a transfer over its own time limit.

    Transfers that share a link take longer in proportion to their number, so the ratio says by how much their number
    may grow. The limit is adjusted once per round; a round ends after as many transfers as the limit allows, or after
    a second. Transfers that started before the last change are ignored.

    * Ratio below 1/4: the limit is doubled.
    * Ratio below 1/2: it grows by half while that raises the bytes per second, otherwise by one.
    * Ratio of 1/2 or more (7/10 while growth has raised the bytes per second): it is cut.
    * Growth that does not raise the bytes per second is taken back, since on a full link it only causes packet loss.

    Each cut is also a measurement. On a shared link the bytes per second stay the same. If instead they fall with the
    number of transfers, the host takes a fixed time for each of them: the cut is taken back, and no cut follows for a
    while, each time for longer. If they fell in proportion to the cut, the limit may grow while the bytes per second
    grow as well.

    Args:
        maximum: upper bound of the limit.
        initial: initial value.

    Attributes:
        value: the current limit.
    """

    def __init__(self, maximum: int, initial: int = INITIAL_LIMIT) -> None:
        self._maximum = maximum
        self.value = min(initial, maximum)
        self._epoch = self._last_cut = 0
        self._cut: _Trial | None = None
        self._growth: _Trial | None = None
        self._no_cut_until = self._no_growth_until = self._slow_growth_until = -math.inf
        self._growth_helps = True
        self._no_cut_s = _NO_CUT_S
        self._no_growth_s = _NO_GROWTH_S
        self._threshold = maximum
        self._started: float | None = None
        """Time at which the first transfer of this round started."""
        self._peak = 0
        self._last_rate = 0.0
        self._new_round()

    def note_blocked(self) -> None:
        """A transfer had to wait because of the limit."""
        self._was_blocking = True

    def started(self, now: float, load: int) -> int:
        """A transfer starts.

        Args:
            now: seconds.
            load: number of transfers that run now, this one included.

        Returns:
            The epoch of the transfer: the number of changes of the limit so far.
        """
        if self._started is None:
            self._started = now
        self._peak = max(self._peak, load)
        return self._epoch

    def ended(
        self, now: float, epoch: int, ended: FinishedTransfer, running: Callable[[], float], waiting: bool
    ) -> None:
        """A transfer is complete.

        Args:
            now: seconds.
            epoch: the epoch in which it started.
            ended: the transfer.
            running: gives the largest duration ratio so far of the transfers that still run.
            waiting: whether further transfers wait for this host.
        """
        if epoch < self._epoch or self._started is None:
            return
        self._ended.append(ended)
        if len(self._ended) >= self.value or now - self._started >= _ROUND_S:
            self._end_round(now, max(_percentile_90(self._ended), running()), waiting)

    def timed_out(self, now: float, epoch: int, ended: FinishedTransfer) -> None:
        """A transfer reached its time limit while its bytes were still arriving."""
        if epoch >= self._epoch:
            self._ended.append(ended)
        if self._growth is not None and now < self._no_cut_until and epoch >= self._epoch:
            self._undo_growth(now, self._growth.limit)
        elif epoch >= self._last_cut and now >= self._no_cut_until:
            self._reduce(now, 1.0)

    def refused(self, now: float, epoch: int) -> None:
        """The host has refused or dropped a connection although it answered recently: it accepts fewer at a time."""
        if epoch < self._last_cut:
            return
        self._reduce(now, 1.0)
        self._cut = None
        self._threshold, self._slow_growth_until = self.value, now + _SLOW_GROWTH_S

    def _new_round(self) -> None:
        self._started = None
        self._ended: list[FinishedTransfer] = []
        self._was_blocking = False
        self._peak = 0

    def _end_round(self, now: float, duration_ratio: float, waiting: bool) -> None:
        assert self._started is not None
        rate = self._rate()
        if self._cut is not None and waiting:
            self._judge_cut(now, rate, now - self._started)
        elif self._growth is not None and waiting:
            self._judge_growth(now, rate)
        if duration_ratio >= (_HIGH_RATIO_SCALING if self._growth_helps else _HIGH_RATIO) and now >= self._no_cut_until:
            self._reduce(now, duration_ratio)
        elif self._was_blocking and now >= self._no_growth_until:
            self._grow(now, duration_ratio, rate)
        self._new_round()

    def _judge_cut(self, now: float, rate: float, round_s: float) -> None:
        """Keeps the last cut or takes it back, by its effect on the rate."""
        assert self._cut is not None
        before, ratio = self._cut, self.value / self._cut.limit
        self._cut = None
        if rate >= _halfway(before.rate, ratio):
            # The rate has hardly fallen: the link is full, and fewer transfers share it. The cut stays.
            self._no_cut_s = _NO_CUT_S
            self._growth_helps = False
            return
        # The rate has fallen with the number of transfers: each takes its time however many there are.
        self._no_cut_until = now + max(self._no_cut_s, _NO_CUT_ROUNDS * round_s)
        self._no_cut_s = min(2 * self._no_cut_s, _MAX_NO_CUT_S)
        if rate > before.rate * ratio * _TOLERANCE:
            # But by less than their number, so more transfers would not all add to it.
            self._no_growth_until = max(self._no_growth_until, self._no_cut_until)
        self._set_value(before.limit)

    def _judge_growth(self, now: float, rate: float) -> None:
        """Keeps the last growth step or takes it back, by its effect on the rate."""
        assert self._growth is not None
        before, ratio = self._growth, self.value / self._growth.limit
        self._growth = None
        self._growth_helps = rate >= _halfway(before.rate, ratio)
        if self._growth_helps:
            # The rate has risen with the number of transfers: a later step that fails is retried soon.
            self._no_growth_s = _NO_GROWTH_S
        elif now < self._no_cut_until or rate < before.rate * _MIN_GAIN:
            # The rate has hardly risen, or by too little for a host whose slow transfers no cut may correct now.
            self._undo_growth(now, before.limit)

    def _undo_growth(self, now: float, value: int) -> None:
        """Takes growth back, and prevents growth for a while, each time for longer."""
        self._growth = None
        self._no_growth_until = max(self._no_growth_until, now + self._no_growth_s)
        if now < self._no_cut_until:
            # While nothing is cut, too many transfers could not be corrected.
            self._no_growth_until = max(self._no_growth_until, self._no_cut_until)
        self._no_growth_s = min(2 * self._no_growth_s, _MAX_NO_GROWTH_S)
        self._set_value(value)

    def _grow(self, now: float, duration_ratio: float, rate: float) -> None:
        """Raises the limit after a round in which it was reached."""
        if now < self._no_cut_until:
            # A cut has lowered the rate in proportion, so the duration ratio says nothing; the rate judges the growth.
            self._grow_to(math.ceil(self.value * _GROWTH_FACTOR), rate)
        elif now < self._slow_growth_until and self.value >= self._threshold:
            # The host has refused a connection at about this number.
            self._set_value(self.value + (duration_ratio < _HIGH_RATIO))
        elif duration_ratio < _LOW_RATIO:
            # Twice as many transfers would still take less than half of their time limit.
            self._grow_to(self.value * 2, rate)
        elif self._growth_helps:
            # The transfers take long for another reason than their number: growth has raised the bytes per second.
            self._grow_to(
                max(self.value + 1, int(self.value * min(_GROWTH_FACTOR, _GROWTH_TARGET / duration_ratio))), rate
            )
        else:
            # On a link that is nearly full: by one, and not beyond the high ratio.
            self._set_value(min(self.value + 1, int(self.value * _HIGH_RATIO / duration_ratio)))

    def _grow_to(self, value: int, rate: float) -> None:
        """Raises the limit; a large step is judged later by its effect on the rate."""
        if value >= self.value * _GROWTH_FACTOR:
            self._growth = _Trial(self.value, rate)
        self._set_value(value)

    def _reduce(self, now: float, duration_ratio: float) -> None:
        """Cuts the limit, counted from the transfers that were in use: a cut above them would have no effect."""
        in_use = max(1, min(self.value, self._peak or self.value))
        if in_use == 1:
            self._set_value(1)
            return
        if self._cut is None:
            # Of several cuts in a row the first is judged, together with the others.
            self._cut = _Trial(in_use, self._rate())
        factor = max(_STRONGEST_CUT, min(_WEAKEST_CUT, _HIGH_RATIO / duration_ratio))
        self._set_value(max(1, int(in_use * factor)))
        self._growth = None
        self._last_cut = self._epoch

    def _set_value(self, value: int) -> None:
        value = max(1, min(value, self._maximum))
        if value != self.value:
            self.value = value
            self._epoch += 1
            self._new_round()

    def _rate(self) -> float:
        """Bytes per second of all transfers together, from the durations of those that ended in this round. The
        duration of the round itself is not used, since the number of transfers may have changed during the round."""
        if self._ended:
            seconds = sum(ended.seconds for ended in self._ended)
            self._last_rate = self._peak * sum(ended.nbytes + 1 for ended in self._ended) / max(seconds, 1e-3)
        return self._last_rate


def _halfway(rate: float, ratio: float) -> float:
    """The threshold by which a change of the limit is judged.

    It is halfway between an unchanged rate (a full link, whatever the number of transfers) and one that changes in
    proportion to the limit (a host that takes a fixed time for each transfer).

    Args:
        rate: bytes per second before the change.
        ratio: the limit after the change over the one before.
    """
    return rate * (1 + ratio) / 2


def _percentile_90(ended: list[FinishedTransfer]) -> float:
    """The 90th percentile of the duration ratios; the largest if there are few."""
    return sorted(one.duration_ratio for one in ended)[math.ceil(0.9 * len(ended)) - 1]
