"""What ``fit`` takes: tables with a column of environments, layers, samples made before, targets as one name."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import rich.progress

from pyro_cge.discovery import Igsp, LargeOrderSearch, OrderDAG, OrderSearch, UtIgsp, samples
from pyro_cge.discovery.inputs import known_targets
from pyro_cge.errors import ConfigError, DataError

GENES = ["Spi1", "Gata1", "Klf1"]


@pytest.fixture(scope="module")
def cells():
    """A chain; its middle is knocked out in half the cells. With the guides' names as a column."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 3))
    guide = np.repeat(["none", "KO"], 200)
    x[:200, 1] += x[:200, 0]
    x[200:, 1] -= 3
    x[:, 2] += x[:, 1]
    return pd.DataFrame(x, columns=GENES).assign(guide=guide)


def test_a_column_of_a_table_names_the_environments(cells):
    one, two = samples(cells, "guide", control="none"), samples(cells[GENES], cells["guide"], control="none")
    np.testing.assert_array_equal(one.x, two.x)
    np.testing.assert_array_equal(one.env, two.env)
    assert one.genes == GENES and one.environments == ["none", "KO"]
    found = OrderSearch(restarts=0).fit(cells, "guide", control="none")
    assert found.targets_.loc["KO"].tolist() == [False, True, False]
    control = cells[cells["guide"] == "none"]
    assert OrderDAG(draws=20).start(control, "guide").genes_ == GENES, "the search inside sees the same samples"
    assert LargeOrderSearch().fit(control, "guide").environments_ == ["none"]


def test_other_columns_must_be_numbers(cells):
    dates = pd.to_datetime(["2020-01-01"] * 400)
    for table in (cells.assign(batch="b"), cells.assign(batch=dates), cells.assign(batch=pd.Categorical(["b"] * 400))):
        with pytest.raises(DataError, match="not numbers: 'batch'; leave them out, or name"):
            samples(table, "guide")
    with pytest.raises(DataError, match="not numbers: 'guide'"):
        samples(cells)
    with pytest.raises(DataError, match="expected numbers"):
        samples(cells.to_numpy())
    with pytest.raises(DataError, match="the table has no column 'sgRNA'; it has 'Spi1'"):
        samples(cells, "sgRNA")
    with pytest.raises(DataError, match="an array has none"):
        samples(cells[GENES].to_numpy(), "guide")
    whole = cells.assign(Klf1=np.arange(400), Myc=np.arange(400) % 7 < 3).astype({"Klf1": "Int64"})
    assert samples(whole, "guide").x[3].tolist()[2:] == [3.0, 0.0]
    with pytest.raises(DataError, match="1 values are not finite, the first in row 5, column 'Klf1'"):
        samples(whole.assign(Klf1=whole["Klf1"].where(whole.index != 5)), "guide")


@pytest.mark.parametrize("estimator", [OrderSearch(restarts=0), UtIgsp(restarts=0)], ids=repr)
def test_a_layer_is_chosen_before_the_fit(cells, estimator):
    noise = np.random.default_rng(1).standard_normal((400, 3))
    adata = anndata.AnnData(
        noise,
        obs=cells[["guide"]].set_index(cells.index.astype(str)),
        var=pd.DataFrame(index=GENES),
        layers={"log1p": cells[GENES].to_numpy()},
    )
    chosen = samples(adata, "guide", control="none", layer="log1p")
    assert estimator.fit(chosen).graph_.has_edge("Gata1", "Klf1")
    assert not estimator.fit(adata, "guide", control="none").graph_.edges
    with pytest.raises(DataError, match="no layer 'counts': the AnnData has \\['log1p'\\]"):
        samples(adata, layer="counts")
    with pytest.raises(DataError, match="no layer 'counts': a DataFrame has none"):
        samples(cells, "guide", layer="counts")
    with pytest.raises(DataError, match="have their environments"):
        estimator.fit(chosen, "guide")


def test_one_target_needs_no_list(cells):
    data = samples(cells, "guide", control="none")
    np.testing.assert_array_equal(known_targets({"KO": "Gata1"}, data), known_targets({"KO": ["Gata1"]}, data))
    assert Igsp(restarts=0).fit(cells, "guide", targets={"KO": "Gata1"}, control="none").targets_.to_numpy().sum() == 1
    with pytest.raises(ConfigError, match="genes 'Spi'"):
        known_targets({"KO": "Spi"}, data)


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("kind", [OrderSearch, LargeOrderSearch, UtIgsp, OrderDAG])
def test_every_bar_is_shown_or_hidden_as_asked(cells, kind, shown, monkeypatch):
    """Those of searches inside, too."""
    hidden = []
    track = rich.progress.track
    monkeypatch.setattr(
        rich.progress,
        "track",
        lambda *args, disable, **rest: hidden.append(disable) or track(*args, disable=True, **rest),
    )
    control = cells.loc[cells["guide"] == "none", GENES]
    wide = np.random.default_rng(0).standard_normal((60, 18))  # orders of more than 16 genes are walked over
    for x in (control, wide):
        if kind is OrderDAG:
            OrderDAG(progress=shown, draws=5).start(x).posterior(2)
        else:
            kind(progress=shown, **({"restarts": 0} if kind is UtIgsp else {})).fit(x)
    assert hidden and set(hidden) == {not shown}
