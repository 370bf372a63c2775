"""The lines of docs/scale.md."""

import pytest

from tools.bench.scale import LAWS, TARGETS, Graph, Line, _constants, _on_hosts, _one_host


def test_a_line_goes_through_what_lies_on_one() -> None:
    line = Line.through([1, 2, 4], [12, 14, 18])
    assert (line.base, line.slope) == pytest.approx((10, 2))
    assert line.error == pytest.approx(0)
    assert line.at(100) == pytest.approx(210)


def test_nothing_costs_less_than_nothing_and_the_error_is_relative() -> None:
    line = Line.through([1, 2, 4], [1, 2.4, 4.8])
    assert line.base == 0
    assert 0.05 < line.error < 0.2
    assert line.error == pytest.approx(
        max(abs(line.slope * x / y - 1) for x, y in ((1, 1), (2, 2.4)))
    )


def test_the_tables_have_every_law_and_host() -> None:
    found = [
        (Graph(n, 29 * n, 128, n // 10), {name: 5.0 + law.number(Graph(n, 29 * n, 128, n // 10))
         for name, law in LAWS.items()})
        for n in (1000, 2000, 4000)
    ]  # fmt: skip
    lines = {
        name: Line.through((law.number(graph) for graph, _ in found), (t[name] for _, t in found))
        for name, law in LAWS.items()
    }
    assert len(_constants(found, lines).splitlines()) == 2 + len(LAWS)
    assert all(law.what in _constants(found, lines) for law in LAWS.values())
    for graph in TARGETS.values():
        assert [row.split(" | ")[0] for row in _on_hosts(graph, lines).splitlines()[2:]] == [
            "| 4",
            "| 16",
            "| 64",
            "| 256",
        ]
    assert "the partitioner's file" in _one_host(lines)
