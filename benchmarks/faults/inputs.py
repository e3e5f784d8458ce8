"""Bad input of every kind, for every reader and constructor: each must end in an error of ours, or in a documented repair.

A case is a function of a folder that holds good files (:func:`good_files`) and may be written to. It is *typed* where it
raises a ``PyroCgeError``, *repaired* where it is one of :data:`REPAIRS` and returns True, *foreign* where it raises
anything else, and *silent* where it returns.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anndata
import h5py
import networkx as nx
import numpy as np
import pandas as pd
import scipy.sparse
import torch

import pyro_cge as cge
from pyro_cge.config import RunConfig, read_settings
from pyro_cge.data.filters import Filters
from pyro_cge.data.geo import parse_dose, parse_time, read_side_table
from pyro_cge.data.l1000 import Expression, read_gct, write_gctx
from pyro_cge.data.opening import stream
from pyro_cge.data.prepare import prepare, read_smiles
from pyro_cge.data.splits import Split, split
from pyro_cge.data.tables import read_table
from pyro_cge.discover import read_knowledge, read_profiles, read_targets
from pyro_cge.discovery.edge_prior import EdgePrior
from pyro_cge.discovery.knowledge import Knowledge
from pyro_cge.errors import PyroCgeError
from pyro_cge.imputation.reading import read_effects
from pyro_cge.impute import read_features, read_pairs
from pyro_cge.interpret.enrichment import read_gmt, read_weighted_sets
from pyro_cge.rank_drugs import read_signature
from pyro_cge.runs import load_fit, run
from pyro_cge.train.checkpoint import load_tensors

Case = Callable[[Path], object]
TINY = RunConfig(latents=2, hidden=(4,), epochs=1, batch_size=16)


def data(profiles: int = 10) -> cge.EnvironmentData:
    """Four environments of four genes."""
    environments = cge.simulate.random_shifts(2, 3, sd=2)
    return cge.simulate.growing_network(n_latents=2, n_genes=4, environments=environments).sample(profiles)


def effects(**change: object) -> cge.Effects:
    """Two contexts × two actions × three genes."""
    given = {
        "x": np.arange(9.0).reshape(3, 3),
        "context": np.array([0, 0, 1]),
        "action": np.array([0, 1, 0]),
        "context_names": ["A", "B"],
        "action_names": ["p", "q"],
        "gene_names": ["g1", "g2", "g3"],
    }
    return cge.Effects(**(given | change))  # type: ignore[arg-type]


def good_files(folder: Path) -> None:
    """Every kind of file there is, as it should be."""
    content = data()
    cge.write_h5ad(content, folder / "good.h5ad")
    obs = pd.DataFrame({"pert_id": ["DMSO", "a", "b"]}, index=["p1", "p2", "p3"])
    var = pd.DataFrame(index=["10", "20"])
    expression = Expression(np.arange(6, dtype=np.float32).reshape(3, 2), obs, var)
    write_gctx(folder / "good.gctx", expression)
    rows = ["#1.3", "2\t3\t0\t1", "id\tp1\tp2\tp3", "pert_id\tDMSO\ta\tb", "10\t0\t2\t4", "20\t1\t3\t5"]
    (folder / "good.gct").write_text("\n".join(rows) + "\n")
    frame = pd.DataFrame({"environment": ["c", "d"] * 3, "g1": np.arange(6.0), "g2": np.arange(6.0) ** 2})
    frame.to_csv(folder / "good.csv", index=False)
    (folder / "good.yaml").write_text("latents: 2\n")
    split(content, by="random").save(folder / "split.json")
    run(TINY, content, folder / "run", progress=False)


# How a case spoils a good file


def text(name: str, content: str | bytes, read: Callable[[Path], object]) -> Case:
    """A file of its own."""

    def case(folder: Path) -> object:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read(path)

    return case


def cut(name: str, share: float, read: Callable[[Path], object]) -> Case:
    """The first part of a good file."""

    def case(folder: Path) -> object:
        content = (folder / name).read_bytes()
        path = folder / f"cut {name}"
        path.write_bytes(content[: int(len(content) * share)])
        return read(path)

    return case


def h5(name: str, spoil: Callable[[h5py.File], object], read: Callable[[Path], object]) -> Case:
    """An HDF5 file with something changed in it."""

    def case(folder: Path) -> object:
        path = folder / f"spoilt {name}"
        path.write_bytes((folder / name).read_bytes())
        with h5py.File(path, "r+") as file:
            spoil(file)
        return read(path)

    return case


def put(file: h5py.File, key: str, values: object) -> None:
    """Replace a dataset, keeping what its attributes say."""
    attributes = dict(file[key].attrs)
    del file[key]
    file[key] = values
    file[key].attrs.update(attributes)


def add(file: h5py.File, key: str, values: np.ndarray) -> None:
    file[key] = values
    file[key].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def edit(file: h5py.File, key: str, place: object, value: object) -> None:
    values = file[key][()]
    values[place] = value
    put(file, key, values)


def spoilt_run(name: str, content: bytes, resume: bool = False) -> Case:
    """A run folder of which one file is something else."""

    def case(folder: Path) -> object:
        kept = (folder / "run" / name).read_bytes()
        (folder / "run" / name).write_bytes(content)
        try:
            if resume:
                return run(TINY, data(), folder / "run", resume=True, progress=False)
            return load_fit(folder / "run")
        finally:
            (folder / "run" / name).write_bytes(kept)

    return case


def manifest(change: dict[str, object]) -> Case:
    """Weights whose manifest says something else, properly hashed."""

    def case(folder: Path) -> object:
        from pyro_cge.train.checkpoint import save_tensors

        tensors, said = load_tensors(folder / "run" / "weights.safetensors")
        said.update(change)
        (folder / "other").mkdir(exist_ok=True)
        save_tensors(folder / "other" / "weights.safetensors", tensors, said)
        return load_fit(folder / "other")

    return case


def shell(*arguments: str) -> Case:
    """The command line: an error is one line on stderr, exit code 1 (ours) or 2 (usage), and no traceback."""

    def case(folder: Path) -> object:
        command = [sys.executable, "-m", "pyro_cge.cli", *(a.replace("@", f"{folder}/") for a in arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "Traceback" in done.stderr or done.returncode not in (0, 1, 2):
            raise RuntimeError(done.stderr[-300:])
        if done.returncode:
            raise PyroCgeError(done.stderr.strip())
        return done.stdout

    return case


def environment_data(**change: object) -> Case:
    return lambda _: replace(data(), **change)


def fitted(**options: object) -> Case:
    """Training with a setting that makes no sense."""

    def case(_: Path) -> object:
        content = data()
        model, guide = cge.environment_vae(content, 2, hidden=(4,))
        return cge.fit(model, guide, content, progress=False, **({"epochs": 1} | options))  # type: ignore[arg-type]

    return case


def preset(**options: object) -> Case:
    return lambda _: cge.structured_vae(data(), **({"d": 2} | options))  # type: ignore[arg-type]


def posterior(ask: Callable[[cge.Posterior], object]) -> Case:
    return lambda folder: ask(load_fit(folder / "run").posterior(data()))


def settings(content: str, kind: type = RunConfig) -> Case:
    return text("bad.yaml", content, lambda path: read_settings(kind, path))


def override(item: str) -> Case:
    return lambda _: read_settings(RunConfig, None, [item])


NAN = float("nan")
READ_OWN, READ_ANY = cge.read_h5ad, lambda path: cge.read_h5ad(path, env_key="environment")
UNS = "uns/pyro_cge"

CASES: dict[str, Case] = {
    # .h5ad
    "h5ad: absent": lambda folder: cge.read_h5ad(folder / "none.h5ad"),
    "h5ad: a folder": lambda folder: cge.read_h5ad(folder),
    "h5ad: empty": text("empty.h5ad", b"", READ_OWN),
    "h5ad: text": text("text.h5ad", "not HDF5\n" * 100, READ_OWN),
    "h5ad: first half": cut("good.h5ad", 0.5, READ_OWN),
    "h5ad: last byte lost": cut("good.h5ad", 0.999, READ_OWN),
    "h5ad: NaN in X": h5("good.h5ad", lambda f: edit(f, "X", (2, 1), NAN), READ_OWN),
    "h5ad: infinity in X": h5("good.h5ad", lambda f: edit(f, "X", (2, 1), np.inf), READ_OWN),
    "h5ad: X of text": h5("good.h5ad", lambda f: put(f, "X", np.full((40, 4), b"x")), READ_OWN),
    "h5ad: X gone": h5("good.h5ad", lambda f: f.__delitem__("X"), READ_OWN),
    "h5ad: X of another size": h5("good.h5ad", lambda f: put(f, "X", np.zeros((3, 4), "f4")), READ_OWN),
    "h5ad: unknown env_key": lambda folder: cge.read_h5ad(folder / "good.h5ad", env_key="drug"),
    "h5ad: unknown control": lambda folder: cge.read_h5ad(folder / "good.h5ad", control="vehicle"),
    "h5ad: unknown features_key": lambda folder: cge.read_h5ad(folder / "good.h5ad", features_key="chem"),
    "h5ad: environment code out of range": h5("good.h5ad", lambda f: edit(f, "obs/environment/codes", 0, 77), READ_OWN),
    "h5ad: environment missing": h5("good.h5ad", lambda f: edit(f, "obs/environment/codes", 0, -1), READ_OWN),
    "h5ad: environment missing, own key": h5(
        "good.h5ad", lambda f: (edit(f, "obs/environment/codes", 0, -1), f.__delitem__("uns/pyro_cge")), READ_ANY
    ),
    "h5ad: names of environments repeated": h5(
        "good.h5ad", lambda f: edit(f, f"{UNS}/env_names", 1, "control"), READ_OWN
    ),
    "h5ad: names of environments gone": h5("good.h5ad", lambda f: f.__delitem__(f"{UNS}/env_names"), READ_OWN),
    "h5ad: control out of range": h5("good.h5ad", lambda f: put(f, f"{UNS}/control", np.array([9])), READ_OWN),
    "h5ad: control is text": h5("good.h5ad", lambda f: put(f, f"{UNS}/control", np.array([b"a"])), READ_OWN),
    "h5ad: repeated genes": h5("good.h5ad", lambda f: edit(f, "var/_index", 1, "gene 0"), READ_OWN),
    "h5ad: features of another size": h5(
        "good.h5ad", lambda f: add(f, f"{UNS}/env_features", np.zeros((2, 3), "f4")), READ_OWN
    ),
    "h5ad: features of text": h5("good.h5ad", lambda f: add(f, f"{UNS}/env_features", np.full((4, 3), b"x")), READ_OWN),
    "h5ad: truth of 2⁵⁰ nodes": h5(
        "good.h5ad", lambda f: f[f"{UNS}/truth/n_nodes"].write_direct(np.array(2**50)), READ_OWN
    ),
    "h5ad: truth half gone": h5("good.h5ad", lambda f: f.__delitem__(f"{UNS}/truth/loc"), READ_OWN),
    "h5ad: truth of another size": h5(
        "good.h5ad", lambda f: put(f, f"{UNS}/truth/loc", np.zeros((2, 2), "f4")), READ_OWN
    ),
    "anndata: no matrix": lambda _: cge.from_anndata(anndata.AnnData(obs=pd.DataFrame({"e": ["a"]})), env_key="e"),
    # Streamed
    "stream: absent": lambda folder: stream(folder / "none.h5ad"),
    "stream: another kind": lambda folder: stream(folder / "good.csv"),
    "stream: text": text("text.h5ad", "not HDF5\n" * 100, stream),
    "stream: first half": cut("good.h5ad", 0.5, stream),
    "stream: X gone": h5("good.h5ad", lambda f: f.__delitem__("X"), stream),
    "stream: X of text": h5("good.h5ad", lambda f: put(f, "X", np.full((40, 4), b"x")), stream),
    "stream: X of another size": h5("good.h5ad", lambda f: put(f, "X", np.zeros((3, 4), "f4")), stream),
    "stream: NaN in X": h5(
        "good.h5ad", lambda f: edit(f, "X", (2, 1), NAN), lambda path: stream(path).batch(torch.arange(9))
    ),
    "stream: obs gone": h5("good.h5ad", lambda f: f.__delitem__("obs"), stream),
    "stream: var gone": h5("good.h5ad", lambda f: f.__delitem__("var"), stream),
    "stream: names of environments gone": h5("good.h5ad", lambda f: f.__delitem__(f"{UNS}/env_names"), stream),
    "stream: no field": lambda folder: stream(folder / "good.gctx", "colour"),
    "stream: windows of none": lambda folder: stream(folder / "good.h5ad", window=0),
    # GCT, GCTX and side tables
    "gct: absent": lambda folder: read_gct(folder / "none.gct"),
    "gct: compressed": text("a.gct.gz", b"\x1f\x8b" + b"0" * 50, read_gct),
    "gct: empty": text("a.gct", b"", read_gct),
    "gct: another version": text("a.gct", "#2.0\n1\t1\nid\tp\n1\t2\n", read_gct),
    "gct: sizes that are no numbers": text("a.gct", "#1.3\ntwo\t3\t0\t0\n", read_gct),
    "gct: sizes too large": text("a.gct", "#1.3\n9\t9\t0\t0\nid\tp\n1\t2\n", read_gct),
    "gct: sizes absurd": text("a.gct", "#1.3\n99999999999\t9\t0\t0\nid\tp\n1\t2\n", read_gct),
    "gct: first half": cut("good.gct", 0.5, read_gct),
    "gct: text for a number": text("a.gct", "#1.3\n1\t1\t0\t0\nid\tp\n1\tx\n", read_gct),
    "gct: a missing value": text("a.gct", "#1.3\n1\t1\t0\t0\nid\tp\n1\t-666\n", read_gct),
    "gct: repeated profiles": text("a.gct", "#1.3\n1\t2\t0\t0\nid\tp\tp\n1\t1\t2\n", read_gct),
    "gct: binary": text("a.gct", bytes(range(256)) * 10, read_gct),
    "gctx: first half": cut("good.gctx", 0.5, read_gct),
    "gctx: no matrix": h5("good.gctx", lambda f: f.__delitem__("0/DATA/0/matrix"), read_gct),
    "gctx: fewer ids than profiles": h5("good.gctx", lambda f: put(f, "0/META/COL/id", [b"p1"]), read_gct),
    "gctx: repeated ids": h5("good.gctx", lambda f: put(f, "0/META/COL/id", [b"p1"] * 3), read_gct),
    "gctx: a field of another length": h5("good.gctx", lambda f: put(f, "0/META/COL/pert_id", [b"a"]), read_gct),
    "gctx: a matrix of text": h5("good.gctx", lambda f: put(f, "0/DATA/0/matrix", np.full((3, 2), b"x")), read_gct),
    "gctx: NaN": h5("good.gctx", lambda f: edit(f, "0/DATA/0/matrix", (1, 1), NAN), read_gct),
    "gctx: an unknown gene": lambda folder: read_gct(folder / "good.gctx", genes=["30"]),
    "gctx: a gene twice": lambda folder: read_gct(folder / "good.gctx", genes=["10", "10"]),
    "side table: absent": lambda folder: read_side_table(folder / "none.txt"),
    "side table: no key": text("a.txt", "a\tb\n1\t2\n", read_side_table),
    "side table: repeated key": text("a.txt", "sig_id\tb\n1\t2\n1\t3\n", read_side_table),
    "side table: ragged": text("a.txt", "sig_id\tb\n1\t2\t3\t4\n1\n", read_side_table),
    "side table: no gzip": text("a.txt.gz", "sig_id\tb\n", read_side_table),
    "dose: a word": lambda _: parse_dose("a lot"),
    "dose: negative": lambda _: parse_dose("-3 uM"),
    "time: of another unit": lambda _: parse_time("3 fortnights"),
    "smiles: no column": text("a.csv", "perturbagen,structure\na,CC\n", read_smiles),
    "smiles: empty": text("a.csv", "", read_smiles),
    "prepare: a filter that leaves nothing": lambda folder: prepare(
        [folder / "good.gctx"], folder / "x.h5ad", filters=Filters(times=(3.0,))
    ),
    "prepare: the same file twice": lambda folder: prepare([folder / "good.gctx"] * 2, folder / "x.h5ad"),
    "prepare: no file": lambda folder: prepare([], folder / "x.h5ad"),
    "prepare: no such feature": lambda folder: prepare([folder / "good.gctx"], folder / "x.h5ad", features=["smell"]),
    "filters: unknown": settings("landmark: true\n", Filters),
    # Tables
    "csv: absent": lambda folder: read_table(folder / "none.csv"),
    "csv: empty": text("a.csv", "", read_table),
    "csv: header alone": text("a.csv", "environment,g1\n", read_table),
    "csv: no environment": text("a.csv", "g1,g2\n1,2\n", read_table),
    "csv: no gene": text("a.csv", "environment\na\nb\n", read_table),
    "csv: text for a number": text("a.csv", "environment,g1\na,1\nb,x\n", read_table),
    "csv: a number missing": text("a.csv", "environment,g1\na,1\nb,\n", read_table),
    "csv: infinity": text("a.csv", "environment,g1\na,1\nb,inf\n", read_table),
    "csv: too large for float32": text("a.csv", "environment,g1\na,1\nb,1e300\n", read_table),
    "csv: environment missing": text("a.csv", "environment,g1\na,1\n,2\n", read_table),
    "csv: ragged": text("a.csv", "environment,g1\na,1,3,4\nb\n", read_table),
    "csv: binary": text("a.csv", bytes(range(256)) * 10, read_table),
    "csv: no gzip": text("a.csv.gz", "environment,g1\na,1\n", read_table),
    "csv: booleans": text("a.csv", "environment,g1\na,True\nb,False\n", read_table),
    "discover: words": text("a.csv", "g1,g2\n1,a\n2,b\n", lambda path: read_profiles(path, None)),
    "discover: NaN": text(
        "a.csv", "g1,g2\n1,2\n,3\n2,5\n", lambda path: cge.discovery.OrderSearch().fit(read_profiles(path, None))
    ),
    "known edges: kind": text("a.csv", "cause,effect,kind\na,b,maybe\n", lambda path: read_knowledge(path)),
    "known edges: empty": text("a.csv", "", lambda path: read_knowledge(path)),
    "tiers: no number": text("a.csv", "gene,tier\na,first\n", lambda path: read_knowledge(None, path)),
    "known targets: column": text("a.csv", "drug,gene\na,b\n", read_targets),
    "effects: no column": text("a.csv", "context,g1\na,1\n", lambda path: read_effects(path, "context", "action")),
    "effects: no number": text(
        "a.csv", "context,action,g1\na,p,x\n", lambda path: read_effects(path, "context", "action")
    ),
    "effects: NaN": text(
        "a.csv", "context,action,g1,g2\na,p,,1\n", lambda path: read_effects(path, "context", "action")
    ),
    "effects: absent .h5ad": lambda folder: read_effects(folder / "none.h5ad", "context", "action"),
    "pairs: unknown name": text("a.csv", "context,action\nA,zz\n", lambda path: read_pairs(path, effects())),
    "pairs: empty": text("a.csv", "", lambda path: read_pairs(path, effects())),
    "features: text": text("a.csv", "name,f\nA,x\nB,y\n", lambda path: effects(context_features=read_features(path))),
    "features: a name missing": text(
        "a.csv", "name,f\nA,1\n", lambda path: effects(context_features=read_features(path))
    ),
    "signature: no column": text("a.csv", "gene,fold\na,1\n", lambda path: read_signature(path, ["log2fc"])),
    "signature: empty": text("a.csv", "", lambda path: read_signature(path, ["log2fc"])),
    "gmt: a line without genes": text("a.gmt", "set\tdescription\n", read_gmt),
    "gmt: a set twice": text("a.gmt", "s\td\ta\ns\td\tb\n", read_gmt),
    "gmt: binary": text("a.gmt", bytes(range(256)), read_gmt),
    "weights of sets: text": text("a.csv", "gene,s\na,x\n", read_weighted_sets),
    "weights of sets: empty": text("a.csv", "", read_weighted_sets),
    # Settings
    "yaml: no YAML": settings("a: [1, 2\nb: {"),
    "yaml: a list": settings("- 1\n"),
    "yaml: unknown key": settings("latnets: 3\n"),
    "yaml: a key that is no word": settings("1: 2\n"),
    "yaml: a date that is none": settings("seed: 2020-99-99\n"),
    "yaml: NaN": settings("lr: .nan\n"),
    "yaml: infinity": settings("lr: .inf\n"),
    "yaml: a tag that runs code": settings("lr: !!python/object/apply:os.getcwd []\n"),
    "yaml: nested too deep": settings("lr: " + "[" * 3000 + "]" * 3000),
    "yaml: a bomb": settings(
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(6))
        + "latents: *g\n"
    ),
    "yaml: layers of no units": settings("hidden: [0]\n"),
    "yaml: a negative seed": settings("seed: -1\n"),
    "yaml: a seed too large": settings("seed: 99999999999999999999999\n"),
    "yaml: binary": settings("\x00\x01"),
    "--set: no YAML": override("latents=["),
    "--set: no value": override("latents"),
    "--set: a word": override("epochs=many"),
    # Checkpoints and runs
    "weights: absent": lambda folder: load_fit(folder / "none"),
    "weights: first half": spoilt_run("weights.safetensors", b"\x40\x00\x00\x00\x00\x00\x00\x00{"),
    "weights: a pickle": spoilt_run("weights.safetensors", b"\x80\x04K\x01."),
    "weights: a header of 2⁶⁴ bytes": spoilt_run("weights.safetensors", b"\xff" * 16),
    "weights: other preset": manifest({"config": TINY.model_dump(mode="json") | {"latents": 3}}),
    "weights: no settings": manifest({"config": {"latnets": 3}}),
    "weights: genes repeated": manifest({"genes": ["a"] * 4}),
    "weights: genes are a number": manifest({"genes": 3}),
    "weights: another kind": manifest({"kind": "thing"}),
    "run: config.json damaged": spoilt_run("config.json", b'{"a": ', resume=True),
    "run: config.json a list": spoilt_run("config.json", b"[]", resume=True),
    "run: split.json damaged": spoilt_run("split.json", b"{}", resume=True),
    "run: versions.json of other data": spoilt_run("versions.json", b'{"data": "f00"}', resume=True),
    "run: checkpoint damaged": spoilt_run("checkpoint.safetensors", b"\x00" * 64, resume=True),
    "run: history.csv empty": spoilt_run("history.csv", b""),
    "run: other data": lambda folder: run(TINY, data(11), folder / "run", resume=True),
    "run: other settings": lambda folder: run(TINY.model_copy(update={"lr": 1.0}), data(), folder / "run", resume=True),
    "run: a folder in use": lambda folder: run(TINY, data(), folder / "run"),
    "split: of other data": lambda folder: Split.load(folder / "split.json", data(11)),
    "split: fractions": lambda _: split(data(), by="random", fractions=(0.5, 0.1, 0.1)),
    "split: by nothing": lambda _: split(data(), by="moon"),
    "posterior: an unknown environment": posterior(lambda p: p.predict(["env 99"])),
    "posterior: genes missing": lambda folder: load_fit(folder / "run").posterior(data().genes(["gene 0"])),
    # Constructors
    "data: x float64": environment_data(x=torch.zeros(40, 4, dtype=torch.float64)),
    "data: x a list": environment_data(x=[[1.0]]),
    "data: x NaN": environment_data(x=torch.full((40, 4), NAN)),
    "data: genes too few": environment_data(gene_names=["a"]),
    "data: gene names numbers": environment_data(gene_names=[1, 2, 3, 4]),
    "data: env out of range": environment_data(env=torch.full((40,), 9)),
    "data: env float": environment_data(env=torch.zeros(40)),
    "data: env a list": environment_data(env=[0] * 40),
    "data: features of another size": environment_data(env_features=torch.zeros(2, 2)),
    "data: obs of another size": environment_data(obs=pd.DataFrame({"a": [1]})),
    "data: rows of a mask of another length": lambda _: data().rows([True, False]),
    "data: rows before the first": lambda _: data().rows([-1]),
    "data: rows of no whole number": lambda _: data().rows([0.5]),
    "stream: rows of a mask of another length": lambda folder: stream(folder / "good.h5ad").rows([True, False]),
    "data: control a name": environment_data(control=["DMSO"]),
    "data: control out of range": environment_data(control=[-1]),
    "standardizer: of another size": lambda _: cge.Standardizer(torch.zeros(2), torch.ones(2), ["a"]),
    "standardizer: a constant gene": lambda _: cge.Standardizer.fit(replace(data(), x=torch.ones(40, 4))),
    "shift: shapes": lambda _: cge.NoiseShift(torch.zeros(2, 3), torch.zeros(3, 2)),
    "Effects: x NaN": lambda _: effects(x=np.full((3, 3), NAN)),
    "Effects: a pair twice": lambda _: effects(action=np.array([0, 0, 0])),
    "Effects: codes out of range": lambda _: effects(context=np.array([0, 0, 7])),
    "Effects: names for codes": lambda _: effects(context=np.array(["A", "A", "B"])),
    "Effects: an unknown training_only": lambda _: effects(training_only=["Z"]),
    "edge prior: certainty": lambda _: EdgePrior({("a", "b"): 1.0}),
    "edge prior: NaN": lambda _: EdgePrior({("a", "b"): NAN}),
    "edge prior: text": lambda _: EdgePrior.from_table(
        pd.DataFrame({"cause": ["a"], "effect": ["b"], "probability": ["likely"]})
    ),
    "edge prior: columns": lambda _: EdgePrior.from_table(pd.DataFrame({"from": ["a"], "to": ["b"]})),
    "knowledge: a cycle": lambda _: Knowledge(required=[("a", "b"), ("b", "a")]).table(["a", "b"]),
    "knowledge: an unknown gene": lambda _: Knowledge(forbidden=[("a", "z")]).table(["a", "b"]),
    "scm: a cycle": lambda _: cge.structured_vae(data(), 2, graph=nx.DiGraph([(0, 1), (1, 0)])),
    "preset: no latents": preset(d=0),
    "preset: latents a word": preset(d="two"),
    "preset: a decoder": preset(decoder="magic"),
    "preset: a guide": preset(guide="magic"),
    "preset: a likelihood": preset(likelihood="magic"),
    "preset: depth": preset(depth=3),
    "preset: a temperature": preset(temperature=-1.0),
    "preset: layers of no units": preset(hidden=(0,)),
    "preset: a conditioning": preset(conditioning="magic"),
    "fit: no epochs": fitted(epochs=0),
    "fit: a rate of NaN": fitted(lr=NAN),
    "fit: a rate of infinity": fitted(lr=float("inf")),
    "fit: batches of none": fitted(batch_size=0),
    "fit: a device": fitted(device="abacus"),
    "fit: a device that is not there": fitted(device="cuda:99"),
    "fit: all held out": fitted(validation=1.0),
    "fit: held-out data of other genes": fitted(validation=data().genes(["gene 0"])),
    "fit: a schedule": fitted(schedule="sine"),
    "fit: resume without a file": fitted(resume=True),
    "fit: counts that are none": lambda _: cge.fit(
        *cge.basic_vae(data(), 2, likelihood="poisson"), data(), epochs=1, progress=False
    ),
    # The command line
    "cli: no command": shell("fitt"),
    "cli: an option": shell("fit", "basic", "--dta", "x"),
    "cli: no data": shell("fit", "basic", "--data", "@none.h5ad", "--out", "@o1"),
    "cli: a preset": shell("fit", "magic", "--data", "@good.h5ad", "--out", "@o2"),
    "cli: a device": shell("fit", "basic", "--data", "@good.h5ad", "--out", "@o3", "--device", "abacus"),
    "cli: a folder that cannot be": shell("fit", "basic", "--data", "@good.h5ad", "--out", "@good.csv/run"),
    "cli: predict from nothing": shell("predict", "@none"),
    "cli: a YAML": shell("fit", "basic", "--data", "@good.h5ad", "--config", "@good.h5ad", "--out", "@o4"),
}


def doubles(folder: Path) -> bool:
    """Features of float64 are made float32, as expression is."""
    case = h5("good.h5ad", lambda f: add(f, f"{UNS}/env_features", np.zeros((4, 3))), READ_OWN)
    return case(folder).env_features.dtype == torch.float32  # type: ignore[attr-defined]


def lost_time(folder: Path) -> bool:
    expression = "#1.3\n1\t1\t0\t1\nid\tp\npert_idose\t-666\n1\t2\n"
    (folder / "r.gct").write_text(expression)
    return bool(read_gct(folder / "r.gct").obs["pert_idose"].isna().all())


def reordered(folder: Path) -> bool:
    """Genes in another order are brought into the order of training."""
    fit, content = load_fit(folder / "run"), data()
    straight, turned = (
        fit.posterior(d).reconstruct() for d in (content, content.genes(list(content.gene_names)[::-1]))
    )
    return torch.equal(straight, turned)


def leftovers(folder: Path) -> bool:
    """What a kill left of a write is removed by ``--resume``."""
    (folder / "run" / ".config.json.abcd1234.tmp").write_bytes(b"half")
    run(TINY, data(), folder / "run", resume=True, progress=False)
    return not list((folder / "run").glob(".*.tmp"))


def cased(folder: Path) -> bool:
    """Ids of 5720.0 and 5720 are one gene."""
    (folder / "r.gct").write_text("#1.3\n1\t1\t0\t0\nid\tp\n5720\t2\n")
    return read_gct(folder / "r.gct", genes=["5720"]).g == 1


def micro(folder: Path) -> bool:
    """Doses in any spelling of µM."""
    return {parse_dose(text) for text in ("10 µM", "10 μM", "10 uM", "10000 nM", "10", "10|10 um")} == {10.0}


def sparse_of(kind: str) -> Case:
    """Streamed counts of a kind of number that SciPy does not compute with are made one that it does."""

    def case(folder: Path) -> bool:
        content = cge.to_anndata(data())
        content.X = scipy.sparse.csr_matrix(content.X)
        content.write_h5ad(folder / "sparse.h5ad")
        with h5py.File(folder / "sparse.h5ad", "r+") as file:
            put(file, "X/data", file["X/data"][()].astype(kind))
        return bool(torch.allclose(stream(folder / "sparse.h5ad").x, data().x, rtol=1e-3, atol=1e-3))

    return case


REPAIRS: dict[str, Case] = {
    "repair: -666 is missing": lost_time,
    "repair: features float64": doubles,
    "repair: genes in another order": reordered,
    "repair: files left by a kill": leftovers,
    "repair: ids that look like numbers": cased,
    "repair: spellings of a dose": micro,
    "repair: sparse numbers of half precision": sparse_of("<f2"),
    "repair: sparse numbers of another byte order": sparse_of(">f4"),
}


def outcome(case: Case, folder: Path, repair: bool) -> tuple[str, str]:
    """What became of a case, and its message."""
    try:
        result = case(folder)
    except PyroCgeError as error:
        return "typed", str(error)
    except BaseException as error:
        return "foreign", f"{type(error).__name__}: {error}"
    return ("repaired" if repair and result is True else "silent"), json.dumps(str(result))[:100]
