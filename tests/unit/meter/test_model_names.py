"""Few names of models become values of a tag, whatever clients call their models, and those that are used stay."""

from __future__ import annotations

from embedding.model_names import MOST, OTHER, ModelNames, largest, short


class Names:
    """The names under test, with a clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 0.0
        self.forgotten: list[str] = []
        self.names = ModelNames(self.forgotten.append, lambda: self.now)

    def used(self, name: str, times: int = 1) -> str:
        for _ in range(times):
            value = self.names.used(name)
        return value


def test_the_first_names_stand_for_themselves() -> None:
    test = Names()
    assert [test.used(f"model {i}") for i in range(MOST + 2)] == [*(f"model {i}" for i in range(MOST)), OTHER, OTHER]
    assert test.used("model 3") == "model 3"
    assert test.names.known("model 3") == "model 3"
    assert test.names.known("model 51") == OTHER


def test_names_that_come_once_do_not_keep_a_used_model_out() -> None:
    test = Names()
    for i in range(5000):
        test.used(f"stranger {i}")
    assert test.used("real", 10) == OTHER
    test.now += 61
    assert test.used("real") == "real"
    assert len(test.forgotten) == 1
    assert test.forgotten[0].startswith("stranger")


def test_a_flood_of_names_does_not_displace_those_that_are_used() -> None:
    test = Names()
    for i in range(MOST):
        test.used(f"real {i}", 20)
    for i in range(3000):
        assert test.used(f"stranger {i}", 2) == OTHER
        test.now += 61
        # They go on being used, once for each of the strangers.
        assert test.used(f"real {i % MOST}") == f"real {i % MOST}"
    assert test.forgotten == []


def test_one_name_at_a_time_is_replaced() -> None:
    test = Names()
    for i in range(MOST):
        test.used(f"old {i}")
    for i in range(20):
        test.used(f"new {i}", 5 + i)
    test.now += 61
    taken = [test.used(f"new {i}") for i in range(20)]
    assert taken == [OTHER] * 19 + ["new 19"]
    assert len(test.forgotten) == 1


def test_what_is_no_longer_used_makes_room() -> None:
    test = Names()
    for i in range(MOST):
        test.used(f"old {i}", 1000)
    test.used("new", 3)
    test.now += 12 * 3600
    assert test.used("new") == "new"


def test_the_largest_are_shown_and_the_others_are_added_up() -> None:
    sizes = [(f"model {i}", float(i)) for i in range(MOST + 10)] + [("model 59", 1.0)]
    shown = largest(sizes)
    assert len(shown) == MOST + 1
    assert shown["model 59",] == 60.0
    assert shown[OTHER,] == sum(range(10))


def test_names_hold_no_credentials_and_no_line_breaks() -> None:
    assert short("https://user:secret@host/a.pt?token=abc") == "https://host/a.pt"
    assert "\n" not in short("two\nlines")
    assert len(short("x" * 5000)) == 100
