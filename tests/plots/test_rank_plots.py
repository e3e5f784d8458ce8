"""Plots of ranks."""

from __future__ import annotations

import pandas as pd
import pytest

from pyro_cge import plots
from pyro_cge.errors import DataError


def test_best_drugs_with_their_intervals():
    n = 120
    rank = pd.Series(range(1, n + 1), index=[f"drug{k}" for k in range(n)], dtype=float)
    table = pd.DataFrame(
        {"rank": rank, "rank_median": rank, "rank_low": rank / 2, "rank_high": rank * 2, "p_top": 1 / rank}
    )
    ax = plots.drug_ranks(table.sample(frac=1, random_state=0), most=10, mark=["drug99"])
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == [f"drug{k}" for k in range(10)] + ["drug99"]
    assert ax.get_yticklabels()[-1].get_fontweight() == "bold" and ax.get_xscale() == "log"
    (segments,) = [c for c in ax.collections if hasattr(c, "get_segments")]
    assert [s[:, 0].tolist() for s in segments.get_segments()[:2]] == [[0.5, 2.0], [1.0, 4.0]]
    assert ax.get_ylim()[0] > ax.get_ylim()[1], "the best on top"


def test_targets_are_drawn_as_well_and_other_tables_refused():
    table = pd.DataFrame({"rank": [1.5, 1.5], "rank_low": [1.0, 1.0], "rank_high": [2.0, 2.0]}, index=["RIPK1", "EGFR"])
    assert len(plots.drug_ranks(table.assign(p_upstream=0.5)).get_yticklabels()) == 2
    with pytest.raises(DataError, match="no column 'rank_low'"):
        plots.drug_ranks(table[["rank"]])
    with pytest.raises(DataError, match="empty"):
        plots.drug_ranks(table.iloc[:0])
