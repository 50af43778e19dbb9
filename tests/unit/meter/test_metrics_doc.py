"""docs/operate.md says of each metric what the code says: its name, its kind, its tags and their values."""

from collections.abc import Iterable

from deployments.encoder import metrics as encoder
from deployments.ingress import metrics as ingress
from deployments.preprocessor import metrics as preprocessor
from embedding import series
from embedding.meter import Counter, Gauge, Instrument
from tests.support.metrics_table import Metric, documented

INSTRUMENTS = {
    instrument.name: instrument
    for instrument in (*encoder.INSTRUMENTS, *ingress.INSTRUMENTS, *preprocessor.INSTRUMENTS)
}


def name_of(instrument: Instrument) -> str:
    return f"ray_{instrument.name}{'_total' * isinstance(instrument, Counter)}"


def kind_of(instrument: Instrument) -> str:
    return type(instrument).__name__.lower()


def metrics(wanted: Iterable[Instrument]) -> dict[str, Metric]:
    return {
        name_of(instrument): Metric(
            kind_of(instrument),
            {
                tag: None if values is None else {value.value for value in values}
                for tag, values in instrument.tags.items()
            },
        )
        for instrument in wanted
    }


def test_the_document_says_what_the_code_says() -> None:
    told, known = documented(), metrics(INSTRUMENTS.values())
    assert set(told) == set(known)
    for name, metric in known.items():
        assert told[name] == metric, name


def test_every_instrument_is_told_to_ray() -> None:
    defined = {value.name for value in vars(series).values() if isinstance(value, Instrument)}
    assert len(defined) > 15
    assert defined <= set(INSTRUMENTS)


def test_names_and_tags_are_prometheuss() -> None:
    for instrument in INSTRUMENTS.values():
        assert instrument.name.startswith("marqo_")
        assert not instrument.name.endswith(("_total", "_bucket", "_sum", "_count"))
        assert not {"le", "deployment", "replica", "application", "route"} & set(instrument.tags)


def test_few_series_are_possible_without_names_of_models() -> None:
    """Each costs memory in every replica, in Ray's agents and in Prometheus."""
    series_count = 0
    for instrument in INSTRUMENTS.values():
        product = 1
        for values in instrument.tags.values():
            product *= 51 if values is None else len(values)
        series_count += product * (1 if isinstance(instrument, Counter | Gauge) else 20)
    assert series_count < 2000
