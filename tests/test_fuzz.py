"""Fuzzing of every parser and every public constructor: whatever goes in, what comes out is a value or an error of ours.

Arguments have the type that is asked for and any value: numbers of any size and sign, names of any spelling, shapes that
disagree. Each property runs on a few drawn examples here and on many under ``make test-slow``; draws are reproducible.
"""

from __future__ import annotations

import inspect
import json
import string
import warnings
from functools import partial

import h5py
import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyro_cge as cge
from pyro_cge import simulate
from pyro_cge.config import RunConfig, read_settings, validated
from pyro_cge.data.filters import Filters
from pyro_cge.data.geo import as_ids, parse_dose, parse_time, read_side_table, tidy
from pyro_cge.data.l1000 import Expression, read_gct, write_gctx
from pyro_cge.data.opening import stream
from pyro_cge.data.prepare import read_smiles
from pyro_cge.data.splits import Split
from pyro_cge.data.tables import read_table
from pyro_cge.discover import DiscoverConfig, read_knowledge, read_profiles, read_targets
from pyro_cge.discovery.edge_prior import EdgePrior
from pyro_cge.discovery.knowledge import Knowledge
from pyro_cge.errors import PyroCgeError
from pyro_cge.folders import read_json
from pyro_cge.imputation.reading import read_effects
from pyro_cge.impute import ImputeConfig, read_features, read_pairs
from pyro_cge.interpret.enrichment import read_gmt, read_weighted_sets
from pyro_cge.presets import PRESETS
from pyro_cge.rank_drugs import RankDrugsConfig, read_signature
from pyro_cge.train.checkpoint import load_tensors, save_tensors

FEW, MANY = 10, 200
examples = pytest.mark.parametrize("n", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])


def check(strategy, call, n):
    """``call`` of every draw returns, or raises an error of ours that says something."""

    @settings(
        max_examples=n,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def survives(drawn):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries, about values that are odd on purpose
            try:
                call(drawn)
            except PyroCgeError as error:
                assert len(str(error)) > 10

    survives()


# Parsers of text

CELLS = st.one_of(
    st.sampled_from(
        ["", "a", "b", "NaN", "-666", "inf", "1e400", "0", "1.5", "-2", "TRUE", "10 uM", '"', "'", "µ", "|"]
    ),
    st.text(max_size=5),
    st.floats(width=32).map(str),
    st.integers().map(str),
)


@st.composite
def tables(draw, columns):
    """A table as text, with some of the columns a reader asks for, ragged at times."""
    header = draw(st.lists(st.one_of(st.sampled_from(columns), CELLS), max_size=5))
    rows = draw(st.lists(st.lists(CELLS, min_size=max(len(header) - 1, 0), max_size=len(header) + 1), max_size=5))
    separator = draw(st.sampled_from([",", "\t", ",", ";"]))
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    return end.join(separator.join(row) for row in [header, *rows]).encode("utf-8", "surrogatepass")


def spoilt(good: bytes):
    """Bytes of a good file with some changed, put in, taken out, or cut off."""

    @st.composite
    def mutated(draw):
        content = bytearray(good)
        for _ in range(draw(st.integers(1, 4))):
            place = draw(st.integers(0, max(len(content) - 1, 0)))
            how = draw(st.sampled_from(["change", "insert", "remove", "cut"]))
            if how == "cut":
                del content[place:]
            elif how == "remove":
                del content[place : place + draw(st.integers(1, 8))]
            elif how == "insert":
                content[place:place] = draw(st.binary(min_size=1, max_size=6))
            elif content:
                content[place] = draw(st.integers(0, 255))
        return bytes(content)

    return mutated()


def effects():
    x = np.arange(9.0).reshape(3, 3)
    codes = np.array([0, 0, 1]), np.array([0, 1, 0])
    return cge.Effects(x, *codes, ["A", "B"], ["p", "q"], ["g1", "g2", "g3"])


TEXT = {
    "table": ("f.csv", ["environment", "obs:dose", "g1"], read_table),
    "table with annotations": ("f.tsv", ["environment", "dose", "g1"], partial(read_table, annotations=["dose"])),
    "side table": ("f.txt", ["sig_id", "pert_id", "dose"], read_side_table),
    "SMILES": ("f.csv", ["perturbagen", "smiles"], read_smiles),
    "profiles": ("f.csv", ["g1", "g2"], lambda path: read_profiles(path, None)),
    "known edges": ("f.csv", ["cause", "effect", "kind"], read_knowledge),
    "tiers": ("f.csv", ["gene", "tier"], lambda path: read_knowledge(None, path)),
    "known targets": ("f.csv", ["environment", "gene"], read_targets),
    "effects": ("f.csv", ["context", "action", "g"], lambda path: read_effects(path, "context", "action")),
    "pairs": ("f.csv", ["context", "action"], lambda path: read_pairs(path, effects())),
    "features": (
        "f.csv",
        ["name", "f"],
        lambda path: cge.Effects(np.ones((1, 1)), [0], [0], ["a"], ["b"], ["g"], context_features=read_features(path)),
    ),
    "signature": ("f.csv", ["gene", "log2fc"], lambda path: read_signature(path, ["log2fc"])),
    "weights of sets": ("f.csv", ["gene", "set", "weight"], read_weighted_sets),
    "weights of sets, long": ("f.csv", ["s", "g", "w"], lambda path: read_weighted_sets(path, ("s", "g", "w"))),
    "GMT": ("f.gmt", ["set", "description"], read_gmt),
}


@examples
@pytest.mark.parametrize("name", TEXT)
def test_tables(tmp_path, name, n):
    ending, columns, read = TEXT[name]

    def call(content):
        (tmp_path / ending).write_bytes(content)
        read(tmp_path / ending)

    check(st.one_of(tables(columns), tables(columns), st.binary(max_size=60)), call, n)


@examples
@pytest.mark.parametrize("ending", ["f.csv.gz", "f.csv.bz2", "f.csv.xz", "f.csv.zip"])
def test_tables_that_are_not_compressed_as_they_say(tmp_path, ending, n):
    pd.DataFrame({"environment": ["a", "b"] * 20, "g": np.arange(40.0)}).to_csv(tmp_path / ending, index=False)
    good = (tmp_path / ending).read_bytes()

    def call(content):
        (tmp_path / ending).write_bytes(content)
        read_table(tmp_path / ending)

    check(spoilt(good), call, n)


GCT = "#1.3\n2\t3\t1\t2\nid\tname\tp1\tp2\tp3\npert_id\tna\tDMSO\ta\tb\npert_idose\tna\t-666\t10 uM\t3\n1\tx\t0\t2\t4\n2\ty\t1\t3\t5\n"


@examples
def test_gct(tmp_path, n):
    def call(content):
        (tmp_path / "f.gct").write_bytes(content)
        read_gct(tmp_path / "f.gct")

    check(spoilt(GCT.encode()), call, n)


@examples
@pytest.mark.parametrize("parse", [parse_dose, parse_time, lambda text: tidy(np.array([text, b"1"], dtype=object))])
def test_quantities(parse, n):
    numbers = st.one_of(st.floats().map(str), st.sampled_from(["10", "1e999", "-1", "3 uM|4 uM", "0.5 µM", "24 h"]))
    check(st.one_of(st.text(max_size=12), numbers, st.text(string.digits + ".eE+-| uMhnm", max_size=12)), parse, n)


@examples
def test_ids(n):
    check(st.lists(st.one_of(st.text(max_size=3), st.floats(), st.integers(), st.binary(max_size=3))), as_ids, n)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)


@examples
@pytest.mark.parametrize("read", [Split.load, read_json])
def test_json(tmp_path, read, n):
    data = small()
    cge.split(data, by="random").save(tmp_path / "split.json")
    good = (tmp_path / "split.json").read_bytes()
    fields = st.sampled_from(["train", "valid", "test", "by", "seed", "data_digest"])
    records = st.one_of(JSON, st.dictionaries(fields, JSON, min_size=5))

    def call(content):
        (tmp_path / "split.json").write_bytes(content)
        read(tmp_path / "split.json")

    check(
        st.one_of(records.map(lambda value: json.dumps(value).encode()), spoilt(good), st.binary(max_size=20)), call, n
    )


CONFIGS = [RunConfig, Filters, DiscoverConfig, ImputeConfig, RankDrugsConfig]


@examples
@pytest.mark.parametrize("kind", CONFIGS)
def test_settings(tmp_path, kind, n):
    known = st.sampled_from(sorted(kind.model_fields))
    contents = st.one_of(
        st.dictionaries(st.one_of(known, known, st.text(max_size=4), st.integers()), JSON, max_size=3).map(
            yaml.safe_dump
        ),
        st.text(max_size=30),
        st.text("[]{}:,&*!-|>'\"#\n ab1?", max_size=30),
    )

    def call(content):
        (tmp_path / "c.yaml").write_text(content, encoding="utf-8", errors="replace")
        read_settings(kind, tmp_path / "c.yaml")

    check(contents, call, n)
    check(st.text(max_size=12), lambda text: read_settings(kind, None, [text]), n)
    check(st.tuples(known, st.text(max_size=8)), lambda pair: read_settings(kind, None, ["=".join(pair)]), n)
    check(st.dictionaries(known, JSON, max_size=3), lambda values: validated(kind, values, "here"), n)


# Parsers of binary files


@examples
def test_checkpoints(tmp_path, n):
    path = tmp_path / "f.safetensors"
    save_tensors(path, {"model.w": torch.randn(3, 4), "n": torch.arange(3)}, {"kind": "run", "genes": ["a"]})
    good, truth = path.read_bytes(), load_tensors(path)

    def call(content):
        path.write_bytes(content)
        tensors, manifest = load_tensors(path)
        assert manifest == truth[1] and all(torch.equal(tensors[k], v) for k, v in truth[0].items())

    check(st.one_of(spoilt(good), spoilt(good), st.binary(max_size=40)), call, n)


def datasets(file):
    found = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return sorted(found)


@st.composite
def spoilt_hdf5(draw, names):
    """What to do to one dataset or attribute of a file: bytes of HDF5 itself are left to a process of its own."""
    how = draw(st.sampled_from(["remove", "replace", "shorten", "attribute", "value"]))
    value = draw(
        st.sampled_from([np.zeros((2, 3)), np.array([b"x", b"y"]), np.array(3), np.zeros(0), np.array([np.nan, 1])])
    )
    return draw(st.sampled_from(names)), how, value


def spoil(path, name, how, value):
    with h5py.File(path, "r+") as file:
        attributes, old = dict(file[name].attrs), file[name][()]
        if how == "attribute":
            file[name].attrs["encoding-type"] = "categorical"
            return
        if how == "value" and isinstance(old, np.ndarray) and old.size and old.dtype.kind in "iuf":
            new = old.copy()
            new.flat[0] = -1 if old.dtype.kind == "i" else 200 if old.dtype.kind == "u" else np.nan
        elif how == "shorten":
            new = old[:-1] if isinstance(old, np.ndarray) and old.ndim and len(old) else np.zeros(3)
        else:
            new = value
        del file[name]
        if how != "remove":
            file[name] = new
            file[name].attrs.update(attributes)


def small():
    environments = simulate.random_shifts(2, 3, sd=2)
    data = simulate.growing_network(n_latents=2, n_genes=4, environments=environments).sample(5)
    return data


HDF5 = {
    "h5ad": ("f.h5ad", cge.read_h5ad),
    "h5ad, key": ("f.h5ad", partial(cge.read_h5ad, env_key="cell", features_key="f")),
    "h5ad, streamed": ("f.h5ad", lambda path: stream(path).batch(torch.arange(3))),
    "h5ad, profiles": ("f.h5ad", lambda path: read_profiles(path, None)),
    "h5ad, effects": ("f.h5ad", lambda path: read_effects(path, "cell", "environment")),
    "gctx": ("f.gctx", read_gct),
    "gctx, streamed": ("f.gctx", lambda path: stream(path).batch(torch.arange(2))),
}


@examples
@pytest.mark.parametrize("name", HDF5)
def test_hdf5(tmp_path, name, n):
    ending, read = HDF5[name]
    path = tmp_path / ending
    if ending == "f.h5ad":
        adata = cge.to_anndata(small())
        adata.obs["cell"] = pd.Categorical(["A", "B"] * (len(adata) // 2))
        adata.obsm["f"] = np.ones((len(adata), 2), np.float32)
        adata.uns["pyro_cge"]["env_features"] = np.ones((4, 2), np.float32)
        adata.write_h5ad(path)
    else:
        obs = pd.DataFrame({"pert_id": ["DMSO", "a", "b"], "dose": [1.0, 2.0, 3.0]}, index=["p1", "p2", "p3"])
        write_gctx(path, Expression(np.ones((3, 2), np.float32), obs, pd.DataFrame(index=["1", "2"])))
    good = path.read_bytes()
    with h5py.File(path) as file:
        names = datasets(file)

    def call(drawn):
        path.write_bytes(good)
        spoil(path, *drawn)
        read(path)

    check(spoilt_hdf5(names), call, n)


# Constructors

SIZES = st.one_of(st.integers(-2, 4), st.sampled_from([0, 1, 2, 3]))
NUMBERS = st.one_of(st.floats(), st.sampled_from([0.0, 1.0, -1.0, 0.5, float("nan"), float("inf"), 1e-300]))
LAYERS = st.lists(st.integers(-1, 4), max_size=2).map(tuple)
WORDS = st.sampled_from(["magic", "", "loc", "scale", "both", "mlp", "linear", "sparse", "concat", "film", "shift"])
MOVES = st.sampled_from(["loc", "scale", "both", "sideways"])


@st.composite
def tensors(draw, dtype=torch.float32, dims=(0, 3)):
    shape = draw(st.lists(st.integers(0, 4), min_size=dims[0], max_size=dims[1]))
    value = draw(st.sampled_from([0.0, 1.0, -1.0, 2.0, float("nan"), float("inf")]))
    return torch.full(shape, value if dtype.is_floating_point else 1, dtype=dtype)


NAMES = st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=4)
TABLES = st.sampled_from(
    [None, pd.DataFrame({"f": [1.0, 2.0]}, index=["a", "b"]), pd.DataFrame({"f": ["x"]}, index=["a"]), pd.DataFrame()]
)
GRAPHS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=4).map(nx.DiGraph)
EDGES = st.lists(st.tuples(st.sampled_from("abz"), st.sampled_from("abz")), max_size=3)


def model_and_guide(data):
    return cge.environment_vae(data, 2, hidden=(4,))


def model_of(data, prior, decoder_d):
    return cge.CellModel(cge.StandardPrior(data, prior), None, cge.LinearDecoder(decoder_d, data.g))


GUIDE = {"conditioning": st.one_of(st.none(), WORDS), "hidden": LAYERS}
PRIOR = {"d": SIZES, "moves": MOVES, "spread": NUMBERS, "hidden": LAYERS}
CONSTRUCTORS = {
    "AdversarialPrior": {"d": SIZES, "hidden": LAYERS, "weight": NUMBERS},
    "AmortizedGuide": GUIDE,
    "CategoricalPrior": PRIOR,
    "CellModel": {"prior": st.integers(1, 3), "decoder_d": st.integers(1, 3)},
    "ConditionalDecoder": {"d": SIZES, "g": SIZES, "hidden": LAYERS},
    "DensePrior": {"d": SIZES, "hidden": LAYERS, "moves": MOVES, "targets": st.one_of(st.none(), tensors(torch.bool))},
    "Effects": {
        "x": st.one_of(tensors(torch.float64, (1, 2)).map(torch.Tensor.numpy), st.just(np.ones((2, 2)))),
        "context": st.lists(st.integers(-1, 2), max_size=3).map(np.array),
        "action": st.lists(st.integers(-1, 2), max_size=3).map(np.array),
        "context_names": NAMES,
        "action_names": NAMES,
        "gene_names": NAMES,
        "training_only": NAMES,
        "context_features": TABLES,
        "action_features": TABLES,
    },
    "Elbo": {"beta": NUMBERS, "free_bits": NUMBERS},
    "EnvironmentData": {
        "x": tensors(dims=(1, 3)),
        "env": tensors(torch.long, (1, 2)),
        "gene_names": NAMES,
        "env_names": NAMES,
        "env_features": st.one_of(st.none(), tensors()),
        "env_table": st.sampled_from([pd.DataFrame(), pd.DataFrame({"a": [1, 2]})]),
        "control": st.lists(st.integers(-1, 5), max_size=2),
    },
    "FlowGuide": GUIDE | {"n_transforms": SIZES},
    "FullCovarianceGuide": GUIDE | {"rank": st.one_of(st.none(), SIZES)},
    "GaussianLikelihood": {"g": SIZES, "scale": NUMBERS},
    "HorseshoePrior": PRIOR,
    "Irm": {"weight": NUMBERS},
    "Iwae": {"n_samples": SIZES},
    "KernelPrior": {"d": SIZES, "spread": NUMBERS},
    "LaplacePrior": PRIOR,
    "LatentSCM": {"graph": GRAPHS, "own_noise": st.one_of(st.none(), NUMBERS)},
    "LearnedSCM": {
        "d": SIZES,
        "probability": NUMBERS,
        "order": st.one_of(st.none(), st.lists(st.integers(0, 3), max_size=3)),
    },
    "LinearDecoder": {"d": SIZES, "g": SIZES},
    "MLPDecoder": {"d": SIZES, "g": SIZES, "hidden": LAYERS},
    "Mmd": {"weight": NUMBERS, "bandwidths": st.lists(NUMBERS, max_size=2)},
    "NoiseShift": {"loc": tensors(), "log_scale": tensors()},
    "RefinedGuide": {"steps": SIZES, "lr": NUMBERS, "n_samples": SIZES},
    "SoftmaxPrior": {"d": SIZES, "temperature": NUMBERS, "hidden": LAYERS, "moves": MOVES},
    "SparseDecoder": {"d": SIZES, "g": SIZES, "probability": NUMBERS},
    "SpikeSlabPrior": PRIOR | {"probability": st.one_of(st.none(), NUMBERS)},
    "StandardPrior": {"d": SIZES},
    "Standardizer": {"mean": tensors(dims=(0, 2)), "scale": tensors(dims=(0, 2)), "gene_names": NAMES},
    "StructuredGuide": GUIDE,
    "StudentTLikelihood": {"g": SIZES, "df": NUMBERS, "scale": NUMBERS},
    "TablePrior": {"shift": tensors(dims=(2, 2)).map(lambda loc: cge.NoiseShift(loc, loc))},
    "fit": {
        "epochs": st.integers(-1, 1),
        "batch_size": SIZES,
        "lr": NUMBERS,
        "kl_warmup": SIZES,
        "kl_start": NUMBERS,
        "clip": NUMBERS,
        "validation": st.one_of(st.none(), NUMBERS),
        "patience": st.one_of(st.none(), SIZES),
        "seed": st.integers(),
        "schedule": st.sampled_from([None, "cosine", "magic"]),
        "device": st.sampled_from([None, "cpu", "cpu:0", "cuda:77", "abacus", ""]),
    },
    "split": {
        "by": st.sampled_from(["random", "environment", "moon", "", "cell_line"]),
        "fractions": st.lists(NUMBERS, max_size=4).map(tuple),
        "seed": st.integers(),
    },
}
# Made of parts that are checked where they are made, or of nothing that can be wrong.
OF_PARTS = {
    "ConditionalCellModel", "Ensemble", "EnsemblePosterior", "Fit", "HardIntervention", "IntervenedCellModel",
    "MechanismDecoder", "MechanismIntervention", "NegativeBinomialLikelihood", "NoiseIntervention", "PerturbationPrior",
    "PoissonLikelihood", "Posterior", "StreamedData", "TensorBoardLog",
}  # fmt: skip


def test_every_public_constructor_is_fuzzed():
    """A new one goes into the table above, or, where parts are all it takes, into the set below it."""
    classes = {name for name in cge.__all__ if inspect.isclass(getattr(cge, name))}
    assert classes - OF_PARTS == CONSTRUCTORS.keys() - {"fit", "split"}


@examples
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_constructors(name, n):
    data, make = small(), model_of if name == "CellModel" else getattr(cge, name)
    takes = inspect.signature(make).parameters
    featured = cge.EnvironmentData(
        data.x, data.env, data.gene_names, data.env_names, env_features=torch.ones(data.n_envs, 2), control=data.control
    )

    def call(drawn):
        arguments = dict(drawn)
        if name == "fit":
            model, guide = model_and_guide(data)
            arguments |= {"model": model, "guide": guide, "progress": False}
        elif "model" in takes:
            arguments["model"] = model_and_guide(data)[0]
        elif "guide" in takes:
            arguments["guide"] = model_and_guide(data)[1]
        if "data" in takes:
            arguments["data"] = featured if name == "KernelPrior" else data
        made = make(**arguments)
        if isinstance(made, torch.nn.Module):
            assert all(value.isfinite().all() for value in made.state_dict().values() if value.is_floating_point())

    check(st.fixed_dictionaries(CONSTRUCTORS[name]), call, n)


OPTIONS = {
    "d": st.one_of(st.just(2), SIZES),
    "hidden": LAYERS,
    "decoder": st.sampled_from(["mlp", "linear", "sparse", "magic"]),
    "conditioning": st.sampled_from([None, "concat", "film", "shift", "magic"]),
    "likelihood": st.sampled_from(["gaussian", "student_t", "poisson", "negative_binomial", "magic"]),
    "guide": st.sampled_from(["mean_field", "full", "structured", "flow", "magic"]),
    "temperature": NUMBERS,
    "moves": MOVES,
    "depth": st.one_of(st.none(), SIZES),
    "mechanism": st.sampled_from(["linear", "neural", "magic"]),
    "additive": st.booleans(),
    "hill": st.booleans(),
    "targets": st.one_of(st.none(), tensors(torch.bool, (2, 2))),
    "graph": st.one_of(st.none(), GRAPHS),
}


@examples
@pytest.mark.parametrize("name", PRESETS)
def test_presets(name, n):
    data, preset = small(), PRESETS[name]
    takes = {key: OPTIONS[key] for key in inspect.signature(preset).parameters if key in OPTIONS}
    check(st.fixed_dictionaries({"d": takes.pop("d")}, optional=takes), lambda options: preset(data, **options), n)


@examples
def test_prior_knowledge(n):
    genes = ["a", "b", "c"]
    tiers = st.lists(st.lists(st.sampled_from("abz"), max_size=2), max_size=3)
    ends = st.lists(st.sampled_from("abz"), max_size=2)
    check(
        st.fixed_dictionaries({"forbidden": EDGES, "required": EDGES, "tiers": tiers, "roots": ends, "leaves": ends}),
        lambda known: Knowledge(**known).table(genes),
        n,
    )
    pairs = st.dictionaries(st.tuples(st.sampled_from("abz"), st.sampled_from("abz")), NUMBERS, max_size=3)
    check(st.tuples(pairs, NUMBERS), lambda given: EdgePrior(*given).matrix(genes), n)
    columns = st.dictionaries(
        st.sampled_from(["cause", "effect", "probability"]), st.lists(CELLS, min_size=2, max_size=2)
    )
    check(columns, lambda table: EdgePrior.from_table(pd.DataFrame(table)).matrix(genes), n)


SIMULATORS = {
    "random_shifts": {"n_latents": SIZES, "n_environments": SIZES, "sd": NUMBERS, "seed": st.integers()},
    "one_per_latent": {"n_latents": SIZES, "kind": st.sampled_from(["shift", "magic"]), "value": NUMBERS},
    "multi_target": {"n_latents": SIZES, "n_environments": SIZES, "n_targets": st.tuples(SIZES, SIZES), "sd": NUMBERS},
    "graded_doses": {"n_latents": SIZES, "n_drugs": SIZES, "doses": st.lists(NUMBERS, max_size=2)},
    "latent_chain": {"n_latents": SIZES, "n_genes": SIZES, "shift": NUMBERS},
    "growing_network": {"n_latents": SIZES, "n_genes": SIZES, "attach": NUMBERS, "gene_noise": NUMBERS},
    "sparse_shift": {
        "n_latents": SIZES,
        "n_genes": SIZES,
        "n_environments": SIZES,
        "n_targets": st.tuples(SIZES, SIZES),
    },
    "additive_sparse": {"n_latents": SIZES, "n_genes": SIZES, "n_environments": SIZES, "probability": NUMBERS},
}


@examples
@pytest.mark.parametrize("name", SIMULATORS)
def test_simulators(name, n):
    make = getattr(simulate, name)
    check(st.fixed_dictionaries(SIMULATORS[name]), lambda options: make(**options), n)
