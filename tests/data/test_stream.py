"""Streamed data: the same numbers as in memory, every profile once, a shuffle as good as stated, within memory."""

from __future__ import annotations

import json
import os
import sys
import tracemalloc
import warnings
from dataclasses import replace

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from typer.testing import CliRunner

import pyro_cge as cge
from pyro_cge import runs
from pyro_cge.cli import app
from pyro_cge.config import RunConfig
from pyro_cge.data import streamed
from pyro_cge.data.align import align
from pyro_cge.data.assemble import to_environment_data
from pyro_cge.data.l1000 import Expression, read_gct, write_gctx
from pyro_cge.data.moments import GeneMoments
from pyro_cge.data.on_disk import DiskMatrix
from pyro_cge.data.opening import stream
from pyro_cge.data.prepare import prepare
from pyro_cge.data.splits import Split
from pyro_cge.data.standardize import Standardizer
from pyro_cge.errors import CheckpointError, ConfigError, DataError

BATCH_FIELDS = ("x", "env", "envs", "is_control", "env_counts", "index")


@pytest.fixture(scope="module")
def counts():
    """90 profiles × 7 genes of counts in 6 environments with features, one of them without profiles."""
    generator = torch.Generator().manual_seed(5)
    x = torch.poisson(torch.full((90, 7), 0.6), generator=generator)
    x[0] = torch.arange(7.0)  # no gene is constant
    return cge.EnvironmentData(
        x=x,
        env=torch.randint(5, (90,), generator=generator),
        gene_names=[f"g{i}" for i in range(7)],
        env_names=[f"e{i}" for i in range(6)],
        env_features=torch.randn(6, 3, generator=generator),
        obs=pd.DataFrame({"plate": np.arange(90) // 10}, index=[f"p{i}" for i in range(90)]),
        control=[0],
    )


def written(data, path, *, sparse=False, chunks=None):
    """The data as AnnData on disk."""
    adata = cge.to_anndata(data)
    if sparse:
        adata.X = scipy.sparse.csr_matrix(adata.X)
    if path.suffix == ".zarr":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # AnnData announces its next default format
            adata.write_zarr(path)
    else:
        adata.write_h5ad(path, **({"compression": "gzip"} if chunks else {}))
    return path


KINDS = {"dense.h5ad": False, "sparse.h5ad": True, "dense.zarr": False, "sparse.zarr": True}


@pytest.fixture(scope="module", params=KINDS)
def on_disk(request, counts, tmp_path_factory):
    return written(counts, tmp_path_factory.mktemp("stored") / request.param, sparse=KINDS[request.param])


@pytest.fixture(scope="module")
def one_file(counts, tmp_path_factory):
    return written(counts, tmp_path_factory.mktemp("stored") / "one.h5ad")


def repeated(data, n):
    """Its profiles over and over, up to ``n``, under names of their own."""
    rows = np.arange(n) % data.n
    return replace(data.rows(rows), obs=pd.DataFrame(index=[f"p{i}" for i in range(n)]))


def same_batches(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert all(torch.equal(getattr(a, k), getattr(b, k)) for k in BATCH_FIELDS)
        assert (a.n_total, a.n_envs) == (b.n_total, b.n_envs)
        assert (a.env_features is None and b.env_features is None) or torch.equal(a.env_features, b.env_features)


# The same numbers as in memory


@pytest.mark.parametrize(("block", "window"), [(None, None), (1, 8), (7, 20), (4, 1000)])
def test_every_kind_of_file_gives_what_memory_has(on_disk, counts, block, window):
    data = stream(on_disk, block=block, window=window)
    assert torch.equal(data.x, counts.x)
    assert list(data.gene_names) == list(counts.gene_names)
    assert data.obs.index.equals(counts.obs.index) and data.control == counts.control
    for size in (1, 4, 16, 200):
        same_batches(data.batches(size), counts.batches(size))
    index = torch.tensor([3, 3, 89, 0])
    same_batches([data.batch(index)], [counts.batch(index)])
    assert torch.equal(torch.cat(list(data.blocks())), counts.x)
    same_batches([data.in_memory().batch()], [counts.batch()])


def test_parts_are_those_of_memory(on_disk, counts):
    data = stream(on_disk, block=3, window=10)
    rows = torch.tensor([80, 2, 2, 41, 7, 79])
    names = ["g5", "g0", "g3"]
    ours, theirs = (d.rows(rows).genes(names).rows([5, 1, 0]) for d in (data, counts))
    assert torch.equal(ours.x, theirs.x) and ours.obs.index.equals(theirs.obs.index)
    same_batches(ours.batches(2), theirs.batches(2))
    assert torch.equal(data.genes(names).genes(["g3", "g5"]).x, counts.genes(["g3", "g5"]).x)
    assert (data.rows([]).n, data.schema().x.shape) == (0, (0, 7))
    assert not list(data.rows([]).batches(4, shuffle=True))
    with pytest.raises(DataError, match="1 of 2 genes are missing from the data: 'nope'"):
        data.genes(["g1", "nope"])


def test_a_mask_means_its_rows_as_in_memory(on_disk, counts):
    mask = counts.env == 2
    same_batches(stream(on_disk).rows(mask).batches(4), counts.rows(np.flatnonzero(mask)).batches(4))
    part = stream(on_disk).rows(mask)
    assert set(part.env.tolist()) == {2} and (counts.x[part.positions] == part.x).all()
    with pytest.raises(DataError, match="mask of 90 entries, but there are"):
        part.rows(mask)
    with pytest.raises(DataError, match=r"index\[0\] = -1"):
        part.rows([-1])


def test_standardised_and_aligned_as_in_memory(on_disk, counts):
    data = stream(on_disk, block=2, window=9)
    ours, theirs = (Standardizer.fit(d) for d in (data, counts))
    # One pass over blocks and one over everything: float32 of float64 sums in another order.
    assert torch.allclose(ours.mean, theirs.mean, rtol=1e-6) and torch.allclose(ours.scale, theirs.scale, rtol=1e-6)
    part = data.genes(["g4", "g1"])
    scaler = Standardizer(theirs.mean[[4, 1]], theirs.scale[[4, 1]], ["g4", "g1"])
    expected = theirs.transform(counts).x[:, [4, 1]]
    assert torch.equal(scaler.transform(part).x, expected)
    assert torch.equal(theirs.transform(data).genes(["g4", "g1"]).x, expected)
    twice = scaler.transform(scaler.transform(part)).x
    assert torch.allclose(twice, (expected - scaler.mean) / scaler.scale, rtol=1e-5, atol=1e-6)
    bare = replace(counts, env_features=None)
    schema = replace(bare.genes(["g2", "g0"]), env_names=list(counts.env_names)[::-1], control=[5]).schema()
    bare_stream = replace(data, table=replace(data.table, env_features=None))
    same_batches(align(bare_stream, schema).batches(16), align(bare, schema).batches(16))


def test_moments_in_blocks_are_those_of_the_whole():
    x = torch.randn(1000, 130) * torch.logspace(-3, 3, 130) + 1e4  # a spread far below the mean
    x[:, 7] = 5.0
    moments = GeneMoments(130)
    for block in x.split([1, 99, 400, 0, 500]):
        moments.add(block)
    assert torch.allclose(moments.mean, x.double().mean(0), rtol=1e-13)
    assert torch.allclose(moments.sd, x.double().std(0, correction=0), rtol=1e-9)
    assert moments.constant.nonzero().tolist() == [[7]]


def test_genes_that_never_vary_are_found(counts, tmp_path):
    dull = replace(counts, x=counts.x.clone())
    dull.x[:, 3] = 2.0
    data = stream(written(dull, tmp_path / "dull.h5ad"), window=8)
    with pytest.raises(DataError, match=r"1 genes are constant.*'g3'.*without_constant_genes"):
        Standardizer.fit(data)
    assert list(data.without_constant_genes().gene_names) == [n for n in counts.gene_names if n != "g3"]


@pytest.mark.parametrize("sparse", [False, True])
def test_a_backed_file_is_read_into_memory(counts, tmp_path, sparse):
    """``from_anndata`` of a file that AnnData left on disk; for training from disk there is ``stream``."""
    adata = anndata.read_h5ad(written(counts, tmp_path / "a.h5ad", sparse=sparse), backed="r")
    try:
        assert torch.equal(cge.from_anndata(adata).x, counts.x)
    finally:
        adata.file.close()


def test_annotations_of_every_kind(counts, tmp_path):
    obs = pd.DataFrame(
        {
            "drug": ["a", "b", "b"] * 30,
            "well": pd.array([None, 1, 2] * 30, dtype="Int64"),
            "dose": np.arange(90.0),
            "kept": [True, False, True] * 30,
        },
        index=[f"cell {i}" for i in range(90)],
    )
    anndata.AnnData(X=counts.x.numpy(), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(7)])).write_h5ad(
        tmp_path / "a.h5ad"
    )
    data, expected = stream(tmp_path / "a.h5ad", "drug"), cge.read_h5ad(tmp_path / "a.h5ad", "drug")
    assert data.obs.index.equals(expected.obs.index) and list(data.obs.columns) == list(expected.obs.columns)
    assert all((data.obs[c].astype(str) == expected.obs[c].astype(str)).all() for c in obs.columns)
    assert torch.equal(data.env, expected.env) and list(data.env_names) == list(expected.env_names)


def test_a_layer_instead_of_x(counts, tmp_path):
    adata = cge.to_anndata(counts)
    adata.layers["raw"] = scipy.sparse.csr_matrix(adata.X.astype(np.uint16) + 1)
    adata.write_h5ad(tmp_path / "layered.h5ad")
    assert torch.equal(stream(tmp_path / "layered.h5ad", layer="raw").x, counts.x + 1)


def test_gctx_as_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"pert_id": ["DMSO", "a", "b", "a"] * 8, "cell_id": ["x", "y"] * 16})
    obs["pert_type"] = ["ctl_vehicle", *["trt_cp"] * 3] * 8
    obs.index = [f"p{i}" for i in range(32)]
    x = rng.standard_normal((32, 5)).astype(np.float32)
    path = tmp_path / "level3.gctx"
    write_gctx(path, Expression(x, obs, pd.DataFrame(index=[f"g{i}" for i in range(5)])))
    for by in ("perturbagen", ("perturbagen", "cell_line")):
        columns = (by,) if isinstance(by, str) else by
        expected = to_environment_data(read_gct(path), columns, ("cell_line",))
        data = stream(path, by, features=("cell_line",), block=3, window=8)
        same_batches(data.batches(16), expected.batches(16))
        assert data.control == expected.control and list(data.env_names) == list(expected.env_names)
    with h5py.File(path, "r+") as file:
        file["/0/DATA/0/matrix"][4, 2] = -666
    with pytest.raises(DataError, match=r"gene 'g2' of profile 'p4' \(row 4\) is nan"):
        list(stream(path).batches(8))


def test_gctx_with_no_more_than_ids(tmp_path):
    """As GEO publishes it: what profiles are is in tables beside it, joined as ``prepare`` joins them."""
    rng, ids = np.random.default_rng(0), [f"s{i}" for i in range(12)]
    x = rng.normal(size=(12, 3)).astype(np.float32)
    path = tmp_path / "level5.gctx"
    write_gctx(path, Expression(x, pd.DataFrame(index=ids), pd.DataFrame(index=["10", "20", "30"])))
    signatures = pd.DataFrame({"sig_id": ids, "pert_id": rng.permutation(["A", "B", "C"] * 4), "cell_id": "MCF7"})
    tables = [tmp_path / "sig_info.txt", tmp_path / "pert_info.txt"]
    signatures.sample(frac=1, random_state=1).to_csv(tables[0], sep="\t", index=False)
    kinds = pd.DataFrame({"pert_id": ["A", "B", "C"], "pert_type": ["ctl_vehicle", "trt_cp", "trt_cp"]})
    kinds.to_csv(tables[1], sep="\t", index=False)
    for key in (None, "pert_id"):
        with pytest.raises(DataError, match=r"level5\.gctx.*no column.*ids .* as GEO publishes.*side_tables=.*prepare"):
            stream(path, key)
    data = stream(path, side_tables=tables, window=8)
    prepare([path], tmp_path / "all.h5ad", side_tables=tables)
    expected = cge.read_h5ad(tmp_path / "all.h5ad")
    same_batches(data.batches(5), expected.batches(5))
    assert list(data.env_names) == list(expected.env_names) == ["A", "B", "C"] and data.control == (0,)
    assert data.digest == expected.digest
    with pytest.raises(DataError, match="no column 'colour'; there are"):
        stream(path, "colour", side_tables=tables)
    with pytest.raises(DataError, match=r"all\.h5ad: .*side_tables= are for GCTX"):
        stream(tmp_path / "all.h5ad", side_tables=tables)


@pytest.mark.parametrize("sparse", [False, True])
def test_compressed_chunks_are_read_whole(counts, tmp_path, sparse):
    many = repeated(counts, 3600)
    path = written(many, tmp_path / "chunked.h5ad", sparse=sparse, chunks=True)
    data = stream(path, window=1000)
    assert data.matrix.chunk_rows > 1 and 1 < data.block <= 1000 // 32
    assert torch.equal(data.x, many.x)


# Shuffling


@pytest.mark.parametrize(("block", "window", "size"), [(1, 8, 8), (7, 20, 6), (5, 60, 20), (90, 90, 7), (20, 3, 16)])
def test_an_epoch_has_every_profile_once(on_disk, counts, block, window, size):
    data = stream(on_disk, block=block, window=window)
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        batches = list(data.batches(size, shuffle=True))
        assert [len(b) for b in batches] == [len(b) for b in counts.batches(size)]
        assert all(
            torch.equal(b.x, counts.x[b.index]) and torch.equal(b.envs[b.env], counts.env[b.index]) for b in batches
        )
        orders.append(torch.cat([b.index for b in batches]))
        assert torch.equal(orders[-1].sort().values, torch.arange(90))
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])


def test_a_part_keeps_its_blocks(one_file):
    """Held-out rows leave gaps; a window still holds whole blocks of the file."""
    data = stream(one_file, block=10, window=20).rows(np.setdiff1d(np.arange(90), np.arange(0, 90, 3)))
    batches = list(data.batches(4, shuffle=True))
    order = torch.cat([b.index for b in batches])
    assert torch.equal(order.sort().values, torch.arange(60))
    blocks = [len(np.unique(data.positions[part] // 10)) for part in order.split(20)]
    assert max(blocks) <= 5  # blocks of 6 or 7: 20 profiles are of four, cut at the ends of the window, not of nine


def test_the_shuffle_is_as_good_as_stated(counts, tmp_path):
    """Share of pairs of a batch from one block, over 100 epochs; fails by chance in about 1 of 15,000 seeds (4 sd)."""
    data = stream(written(repeated(counts, 240), tmp_path / "long.h5ad"), block=5, window=60)
    assert data.shuffling == "blocks of 5 in windows of 60 profiles"
    shares = []
    for _ in range(100):
        block = torch.cat([b.index for b in data.batches(20, shuffle=True)]).reshape(-1, 20) // 5
        same = (block[:, :, None] == block[:, None, :]).double().mean((1, 2)) * 400 - 20
        shares.append(float(same.mean()) / 380)
    stated, perfect = data.clumping(20), 4 / 239
    assert stated == pytest.approx(4 / 59 - 4 / 239)
    error = float(np.std(shares)) / len(shares) ** 0.5
    assert abs(np.mean(shares) - perfect - stated) < 4 * error < 0.1 * stated
    assert stream(data.matrix.path, window=240).clumping(20) == 0.0


def test_one_window_is_the_order_of_memory(on_disk, counts):
    data = stream(on_disk)
    assert data.shuffling is None and counts.shuffling is None
    for source in (data, counts):
        torch.manual_seed(7)
        source_batches = list(source.batches(16, shuffle=True))
        after = torch.rand(1)
        if source is data:
            first, state = source_batches, after
    same_batches(first, source_batches)
    assert torch.equal(state, after)


# Training


def trained(data, **options):
    with cge.isolated(0):
        model, guide = cge.environment_vae(data.schema(), 2, hidden=(8,))
    return cge.fit(model, guide, data, **({"epochs": 4, "batch_size": 16, "progress": False} | options))


def same_fit(a, b):
    assert a.history.drop(columns="seconds").equals(b.history.drop(columns="seconds"))
    assert all(
        torch.equal(p, q)
        for m in ("model", "guide")
        for p, q in zip(getattr(a, m).parameters(), getattr(b, m).parameters(), strict=True)
    )


@pytest.mark.parametrize("named", [False, True])
def test_fit_in_one_window_is_the_fit_in_memory_to_the_bit(one_file, counts, named):
    memory, disk = counts, stream(one_file)
    if named:  # profiles held out, instead of environments
        memory, disk = replace(memory, env_features=None), replace(disk, table=replace(disk.table, env_features=None))
    a, b = trained(memory), trained(disk)
    same_fit(a, b)
    ours, theirs = b.posterior(disk), a.posterior(memory)
    assert ours.effects().equals(theirs.effects()) and ours.latents().equals(theirs.latents())
    assert ours.targets().equals(theirs.targets())
    assert torch.equal(ours.reconstruct(), theirs.reconstruct())
    assert torch.equal(ours.predict(disk), theirs.predict(memory))


def test_fit_by_blocks_resumes_to_the_bit(one_file, tmp_path):
    data = stream(one_file, block=4, window=32)
    whole = trained(data)
    assert np.isfinite(whole.history["valid_loss"]).all()
    path = tmp_path / "run.safetensors"
    trained(data, epochs=2, checkpoint=path)
    same_fit(whole, trained(data, checkpoint=path, resume=True))
    # Another window is another order: refused rather than resumed as if it were the same.
    with pytest.raises(CheckpointError, match="shuffling"):
        trained(stream(one_file, block=4, window=64), checkpoint=path, resume=True)


def test_a_run_goes_on_from_memory_or_from_disk(one_file, counts, tmp_path):
    """Where one window holds the data, the order is the same, and the hash says that the data are."""
    path = tmp_path / "run.safetensors"
    trained(stream(one_file), epochs=2, checkpoint=path)
    same_fit(trained(counts), trained(counts, checkpoint=path, resume=True))


def test_counts_are_the_same_sparse_or_dense(counts, tmp_path):
    paths = [written(counts, tmp_path / f"{s}.h5ad", sparse=s) for s in (False, True)]
    fits = []
    for path in paths:
        data = stream(path, block=4, window=32)
        with cge.isolated(0):
            model, guide = cge.environment_vae(data, 2, hidden=(8,), likelihood="negative_binomial")
        fits.append(cge.fit(model, guide, data, epochs=3, batch_size=16, progress=False))
    same_fit(*fits)
    assert scipy.sparse.issparse(stream(paths[1]).matrix.read(np.arange(20)))
    x = counts.x.double()
    likelihood = fits[0].model.decoder.likelihood
    assert torch.allclose(likelihood.log_mean, x.mean(0).log().float(), rtol=1e-5)
    assert torch.allclose(likelihood.spread, x.log1p().std(0, correction=0).float(), rtol=1e-5)


def test_a_likelihood_of_counts_refuses_others(counts, tmp_path):
    path = written(replace(counts, x=counts.x + 0.5), tmp_path / "half.h5ad")
    with pytest.raises(DataError, match=r"NegativeBinomialLikelihood needs counts.*got .*\.5"):
        cge.environment_vae(stream(path, window=16), 2, likelihood="negative_binomial")


def test_run_folder_from_the_command_line(counts, tmp_path, monkeypatch):
    path = written(counts, tmp_path / "data.h5ad")
    draw = runs.draw
    monkeypatch.setattr(runs, "draw", lambda *_: None)
    settings = ["--set", "latents=2", "--set", "hidden=[8]", "--set", "epochs=2"]
    for name, extra in (("memory", []), ("disk", ["--stream"])):
        command = ["fit", "environment", "--data", str(path), "--out", str(tmp_path / name), *settings, *extra]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    memory, disk = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("memory", "disk"))
    assert memory == disk
    monkeypatch.setattr(runs, "draw", draw)
    monkeypatch.setattr(runs, "SHOWN", 12)  # of streamed data, so many profiles are drawn
    monkeypatch.setattr(runs, "SCORED", 7 * 10)  # ten profiles at a time
    config = RunConfig(latents=2, hidden=(8,), epochs=1)
    fitted, scores = runs.run(config, stream(path, window=16), tmp_path / "few", progress=False)
    assert runs.shown(stream(path)).n == 12 and runs.shown(counts) is counts
    monkeypatch.undo()
    train = counts.rows(Split.load(tmp_path / "few" / "split.json").train)
    assert train.n > 4 * 12  # all of them are scored, not those that are drawn
    assert scores["train"] == pytest.approx(runs.score(fitted, train), rel=1e-5, abs=1e-6)
    posterior = fitted.posterior(train)
    plain = cge.metrics.summarise(train.x, posterior.reconstruct())
    assert {k: scores["train"][f"reconstruction_{k}"] for k in plain} == pytest.approx(plain, rel=1e-5, abs=1e-6)
    assert fitted.settings["shuffling"].endswith("windows of 16 profiles")


# Memory and files


@pytest.mark.parametrize("kind", ["<f2", ">f4", ">f8", ">i4", "<u2", "|i1"])
def test_sparse_numbers_of_every_kind(counts, tmp_path, kind):
    """SciPy computes with neither half precision nor the byte order of other machines."""
    path = written(counts, tmp_path / "counts.h5ad", sparse=True)
    with h5py.File(path, "r+") as file:
        for name, dtype in (("data", kind), ("indices", ">i4" if kind[0] == ">" else "<i4")):
            values, attributes = file[f"X/{name}"][()], dict(file[f"X/{name}"].attrs)
            del file[f"X/{name}"]
            file["X"].create_dataset(name, data=values.astype(dtype)).attrs.update(attributes)
    data = stream(path, block=3, window=10)
    assert torch.equal(data.x, counts.x) and torch.equal(data.genes(["g3", "g1"]).x, counts.genes(["g3", "g1"]).x)


def test_what_keeps_a_file_from_being_read_is_named(one_file, tmp_path, monkeypatch):
    """The file is to blame for what is wrong with the file, not for memory, permissions or missing packages."""
    data = stream(one_file)

    def fail(error):
        def failing(*_, **__):
            raise error

        return failing

    with monkeypatch.context() as patch:
        patch.setattr(DiskMatrix, "_read_dense", fail(MemoryError("Unable to allocate 3.0 GiB")))
        with pytest.raises(DataError, match=r"one\.h5ad: not enough memory .*Unable to allocate 3\.0 GiB.* window="):
            data.batch()
    with monkeypatch.context() as patch:
        patch.setattr(h5py, "File", fail(PermissionError(13, "Permission denied")))
        with pytest.raises(DataError, match=r"one\.h5ad: no permission to read it .*Permission denied"):
            data.batch()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "zarr", None)
        with pytest.raises(ConfigError, match="pip install zarr"):
            stream(tmp_path)


def test_memory_is_the_windows_not_the_data(tmp_path):
    n, g, window = 20_000, 250, 1_000
    with h5py.File(tmp_path / "big.h5ad", "w") as file:
        anndata.io.write_elem(file, "obs", pd.DataFrame({"e": pd.Categorical(["a", "b"] * (n // 2))}))
        anndata.io.write_elem(file, "var", pd.DataFrame(index=[f"g{i}" for i in range(g)]))
        file["X"] = np.zeros((n, g), np.float32)
    data = stream(tmp_path / "big.h5ad", "e", window=window)
    tracemalloc.start()
    try:
        rows = sum(len(batch) for batch in data.batches(100, shuffle=True))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == n
    assert peak < 3 * window * g * 4 + 40 * n  # two windows and one being assembled; a few numbers a profile


def test_no_file_stays_open(on_disk):
    data = stream(on_disk, window=8)
    epoch = data.batches(4)
    next(epoch)
    epoch.close()
    name = os.path.realpath(on_disk)
    opened = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert not [path for path in opened if path.startswith(name)]


def test_too_much_at_once_is_refused(one_file, monkeypatch):
    data = stream(one_file)
    monkeypatch.setattr(streamed, "IN_MEMORY", 1000)
    with pytest.raises(DataError, match=r"90 profiles × 7 genes are 0\.0 GiB, too many to hold at once.*batches"):
        _ = data.x
    assert len(data.batch(torch.arange(30))) == 30


def test_digest_is_that_of_the_data_in_memory(on_disk, counts, monkeypatch):
    """Whatever the file, the part, the units and the blocks it is read in."""
    monkeypatch.setattr(streamed, "READ_BYTES", 100)  # three profiles at a time
    data = stream(on_disk)
    scaler = Standardizer.fit(counts)
    same = [
        (data, counts),
        (stream(on_disk, block=2, window=8), counts),
        (data.rows([5, 0, 0]), counts.rows([5, 0, 0])),
        (data.rows([]), counts.rows([])),
        (data.genes(["g3", "g0"]), counts.genes(["g3", "g0"])),
        (scaler.transform(data), scaler.transform(counts)),
        (stream(on_disk, control="e1"), replace(counts, control=[1])),
    ]
    assert all(ours.digest == theirs.digest for ours, theirs in same)
    assert len({ours.digest for ours, _ in same}) == 6


def test_digest_of_gctx_and_of_named_environments(tmp_path, counts):
    obs = pd.DataFrame({"perturbagen": [f"drug {e}" for e in counts.env.tolist()]}, index=counts.obs.index)
    var = pd.DataFrame(index=counts.gene_names)
    write_gctx(path := tmp_path / "some.gctx", Expression(counts.x.numpy(), obs, var))
    data = stream(path)
    assert data.n_features is None and data.digest == data.in_memory().digest


def test_digest_sees_the_numbers_and_only_them(on_disk, counts, tmp_path):
    """One entry more or less changes it; compression, chunks and sparsity do not."""
    data = stream(on_disk)
    assert stream(written(counts, tmp_path / "gz.h5ad", chunks=True)).digest == data.digest
    x = counts.x.clone()
    x[40, 3] += 1
    changed = written(replace(counts, x=x), tmp_path / on_disk.name, sparse=KINDS[on_disk.name])
    assert stream(changed).digest != data.digest


def test_other_data_are_refused_streamed_or_not(one_file, tmp_path):
    data = stream(one_file)
    parts = cge.split(data, "random")
    replace(parts, data_digest="0" * 64).save(tmp_path / "split.json")
    for given in (data, data.in_memory()):
        with pytest.raises(DataError, match=r"of other data \(0{12}, these are \w{12}\); give"):
            Split.load(tmp_path / "split.json", given)
    config, out = RunConfig(split="random"), tmp_path / "run"
    runs.begin(config, data, out, resume=False)
    runs.begin(config, data.in_memory(), out, resume=True)
    kept = json.loads((out / "versions.json").read_text())
    (out / "versions.json").write_text(json.dumps(kept | {"data": "0" * 64}))
    with pytest.raises(CheckpointError, match=r"data changed since the run in .* was started: their hash is \w{12}"):
        runs.begin(config, data, out, resume=True)


def test_a_stream_says_what_memory_says_and_where_it_reads(one_file, on_disk, counts):
    said = repr(counts).removeprefix("EnvironmentData(").removesuffix(")")
    assert said == "90 profiles × 7 genes, 6 environments (1 control, 3 features)"
    assert repr(stream(one_file)) == f"StreamedData({said}; dense in one.h5ad, shuffled as a whole)"
    kind = "sparse" if KINDS[on_disk.name] else "dense"
    assert repr(stream(on_disk, block=4, window=32)) == (
        f"StreamedData({said}; {kind} in {on_disk.name}, blocks of 4 in windows of 32 profiles)"
    )


# Features and bad input


def test_features_of_profiles_are_looked_up(counts, tmp_path):
    adata = cge.to_anndata(counts)
    adata.obs["drug"] = adata.obs["environment"].astype(str)
    del adata.uns["pyro_cge"]
    adata.obsm["fp"] = counts.env_features[counts.env].numpy()
    adata.write_h5ad(tmp_path / "a.h5ad")
    expected = cge.read_h5ad(tmp_path / "a.h5ad", "drug", "fp", "e0")
    data = stream(tmp_path / "a.h5ad", "drug", "fp", "e0")
    assert torch.equal(data.env_features, expected.env_features) and data.control == expected.control
    adata.obsm["fp"][50] += 1
    adata.write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(DataError, match=r"b\.h5ad: obsm\['fp'\] differs between profiles of environment 'e"):
        stream(tmp_path / "b.h5ad", "drug", "fp")


def broken(kind, counts, folder):
    """A file with one thing wrong with it."""
    path = folder / f"{kind.replace(' ', '_')}.h5ad"
    if kind == "nothing":
        return path
    if kind == "text":
        path.write_text("not HDF5")
        return path
    written(counts, path, sparse=kind in ("indices", "indptr", "nan in csr"))
    with h5py.File(path, "r+") as file:
        if kind == "no X":
            del file["X"]
        elif kind == "no obs":
            del file["obs"]
        elif kind == "bytes":
            del file["X"]
            file["X"] = np.full((90, 7), b"a")
        elif kind == "csc":
            del file["X"]
            anndata.io.write_elem(file, "X", scipy.sparse.csc_matrix(counts.x.numpy()))
        elif kind == "short":
            del file["X"]
            file["X"] = np.zeros((80, 7), np.float32)
        elif kind == "genes twice":
            file["var/_index"][3] = "g0"
        elif kind == "nan":
            file["X"][33, 2] = np.nan
        elif kind == "infinite":
            file["X"][89, 6] = np.inf
        elif kind == "nan in csr":
            file["X/data"][-1] = np.nan
        elif kind == "indices":
            file["X/indices"][3] = 7
        elif kind == "indptr":
            file["X/indptr"][40] = 10**9
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nothing", "no such file; check the path"),
        ("text", "not a readable HDF5 file or zarr folder"),
        ("no X", "there is no matrix 'X'; the file has .*obs"),
        ("no obs", "has no obs, so it was not written by AnnData"),
        ("bytes", r"X has dtype \|S1, expected numbers"),
        ("csc", r"X is stored as csc_matrix, which cannot be read by rows.*tocsr"),
        ("short", "X is 80 × 7, but there are 90 profiles and 7 genes"),
        ("genes twice", "gene_names has duplicates: 'g0'"),
        ("nan", r"gene 'g2' of profile 'p33' \(row 33\) is nan"),
        ("infinite", r"gene 'g6' of profile 'p89' \(row 89\) is inf"),
        ("nan in csr", r"of profile 'p\d+' \(row \d+\) is nan"),
        ("indices", "X/indices is damaged near row 0"),
        ("indptr", "X/indptr is damaged near row"),
    ],
)
def test_bad_files_are_named(kind, message, counts, tmp_path):
    path = broken(kind, counts, tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        list(stream(path, window=30).batches(10, shuffle=True))
    assert path.name in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env_key": "drug"}, "env_key 'drug' is not a column of obs; there are"),
        ({"control": "nope"}, "control 'nope' is not an environment"),
        ({"features_key": "nope"}, "features_key 'nope' is neither in obsm nor in uns"),
        ({"env_key": ["a", "b"]}, "several columns in env_key"),
        ({"features": ["fingerprint"]}, "features= and side_tables= are for GCTX"),
        ({"layer": "raw"}, "there is no matrix 'layers/raw'"),
        ({"block": 0}, "block is a number of profiles, at least 1; got 0"),
        ({"window": -3}, "window is a number of profiles, at least 1; got -3"),
    ],
)
def test_bad_options_are_named(options, message, one_file):
    with pytest.raises(DataError, match=message):
        stream(one_file, **options)


def test_other_kinds_of_file_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"a\.csv: neither \.h5ad nor \.gctx nor a zarr folder"):
        stream(tmp_path / "a.csv")
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(DataError, match=r"a\.zarr"):
        stream(tmp_path / "a.zarr")
    write_gctx(
        tmp_path / "a.gctx",
        Expression(
            np.ones((2, 1), np.float32),
            pd.DataFrame({"pert_id": ["a", "b"]}, index=["p", "q"]),
            pd.DataFrame(index=["g"]),
        ),
    )
    with pytest.raises(DataError, match="GCTX has no layers"):
        stream(tmp_path / "a.gctx", layer="raw")


def test_arrays_that_are_none_are_named_with_the_file(tmp_path):
    """Found by fuzzing: a single number where AnnData keeps a matrix."""
    path = tmp_path / "cell.h5ad"
    design = cge.simulate.random_shifts(3, 6, variance=5.0, cover=True, seed=0)
    cge.to_anndata(cge.simulate.simulator("chain", n_latents=3, n_genes=4, environments=design).sample(5)).write_h5ad(
        path
    )
    with h5py.File(path, "a") as file:
        del file["obsm/c_true"]
        file["obsm/c_true"] = 3
    with pytest.raises(DataError, match=r"cell\.h5ad"):
        stream(path)


@pytest.mark.parametrize("content", ['{"train": [1e400]', '{"train": [' + "9" * 30 + "]", "[" * 100_000])
def test_a_split_of_numbers_too_large_is_refused(tmp_path, content):
    """Found by fuzzing."""
    path = tmp_path / "split.json"
    path.write_text(content + ', "valid": [], "test": [], "by": "random", "seed": 1e400, "data_digest": ""}')
    with pytest.raises(DataError, match="not a saved split"):
        Split.load(path)
