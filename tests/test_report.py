"""Reports: what they say is what the fit says, whatever names the data bring; read by a parser and by a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import pyro_cge as cge
from pyro_cge import interpret, report
from pyro_cge.cli import app
from pyro_cge.config import RunConfig
from pyro_cge.data.opening import stream
from pyro_cge.errors import CheckpointError, ConfigError, DataError
from pyro_cge.plots.latents import colour_limit
from pyro_cge.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Mark
from pyro_cge.report.folders import configurations, find
from pyro_cge.report.page import HUES, SHOWN, _curves, _looks, number, signed
from pyro_cge.runs import load_fit, run

QUICK = RunConfig(latents=3, hidden=(8,), epochs=3, batch_size=64)
VOID = {"meta", "input", "br", "wbr", "link", "img", "hr"}
NASTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</style></table>&amp;",
    "{{ 7 * 7 }} {% raw %}",
]


class Page(HTMLParser):
    """Elements of a page; raises where tags are not balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"an attribute twice in {tag}"
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def find(self, tag, **wanted):
        return [a for t, a in self.tags if t == tag and all(a.get(k) == v for k, v in wanted.items())]

    def table(self, title):
        return next(t for t in self.tables if t and t[0] and t[0][: len(title)] == title)


def read(path) -> Page:
    return Page(path.read_text("utf-8"))


def value(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


@pytest.fixture(scope="module", autouse=True)
def no_figures():
    """Runs without their figures, which a report does not read and which take longest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_cge.runs.draw", lambda *arguments: None)
        yield


@pytest.fixture(scope="module")
def runs(featured, tmp_path_factory):
    """Two seeds of the environment model and one basic model, on the same data."""
    folder = tmp_path_factory.mktemp("runs")
    run(QUICK, featured, folder / "environment" / "seed0")
    run(QUICK.model_copy(update={"seed": 1}), featured, folder / "environment" / "seed1")
    run(QUICK.model_copy(update={"model": "basic", "split": "random"}), featured, folder / "basic")
    return folder


@pytest.fixture(scope="module")
def page(runs, featured, tmp_path_factory):
    """One report on all three."""
    return report.write([runs], tmp_path_factory.mktemp("report") / "report.html", featured)


def test_page_is_well_formed_and_accessible(page):
    found = read(page)
    ids = Counter(a["id"] for _, a in found.tags if "id" in a)
    assert max(ids.values()) == 1
    assert all(a["href"][1:] in ids for a in found.find("a"))
    assert {a["aria-labelledby"] for _, a in found.tags if "aria-labelledby" in a} <= set(ids)
    assert all(a.get("scope") in ("row", "col") for a in found.find("th"))
    charts = [a for a in found.find("svg") if "viewbox" in a]
    assert len(charts) == 3 + 2 * 5 and all(a["role"] == "img" and len(a["aria-label"]) > 30 for a in charts)
    assert found.find("html", lang="en") and found.find("meta", name="viewport")
    assert [t for t, _ in found.tags if t in ("h1", "h2")].count("h1") == 1
    assert found.find("label", **{"for": "search"})


def test_nothing_is_fetched_and_only_the_own_script_may_run(page):
    text = page.read_text()
    assert not re.search(r"https?:|//[a-z]|@import|url\(|\bsrc=|<link", text.replace("// ", ""))
    policy = read(page).find("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_the_same_runs_give_the_same_bytes(runs, page, featured, tmp_path):
    again = report.write([runs], tmp_path / "again.html", featured)
    assert again.read_bytes() == page.read_bytes()


def test_metrics_are_means_over_seeds_with_t_intervals(runs, page):
    table = read(page).table(["Metric", "basic", "environment"])
    row = next(r for r in table if r[0].startswith("loss (nats"))
    a, b = (
        json.loads((runs / "environment" / f"seed{s}" / "metrics.json").read_text())["test"]["loss"] for s in (0, 1)
    )
    half = 12.706204736432095 * abs(a - b) / 2  # t quantile of one degree of freedom, times sd / √2
    mean = (a + b) / 2
    assert row[2] == f"{number(mean)} {number(mean - half)} to {number(mean + half)}"
    assert row[1] == number(json.loads((runs / "basic" / "metrics.json").read_text())["test"]["loss"])


def test_the_best_of_a_row_is_marked_by_its_direction(runs, page):
    bold = re.findall(r'scope="row"[^>]*>([^&<]+)&nbsp;<abbr title="(\w+) is better".*?</tr>', page.read_text())
    assert {"higher", "lower"} == {direction for _, direction in bold}
    scores = {
        name: np.mean(
            [json.loads(p.read_text())["test"]["prediction_mse"] for p in sorted(runs.glob(f"{name}/**/metrics.json"))]
        )
        for name in ("basic", "environment")
    }
    row = re.search(r'scope="row"[^>]*>prediction, squared error a gene.*?</tr>', page.read_text(), re.DOTALL)[0]
    [marked] = re.findall("<b>(.*?)</b>", row)
    assert marked == number(min(scores.values()))


def test_one_run_has_intervals_over_environments(runs, page, featured):
    """The interval is that of the bootstrap over whole environments, and holds the mean it is of."""
    row = next(r for r in read(page).table(["Metric", "basic"]) if r[0].startswith("prediction, Pearson"))
    middle, low, _, high = row[1].split()
    fit = load_fit(runs / "basic")
    held = featured.rows(json.loads((runs / "basic" / "split.json").read_text())["test"])
    assert len(held.env.unique()) >= 5
    posterior = fit.posterior(held)
    r = cge.metrics.pearson_per_profile(posterior.raw.x, posterior.predict(n_samples=30)[posterior.raw.env])
    want = cge.metrics.mean_interval(r, posterior.raw.env.numpy())
    assert (low, high) == tuple(number(v) for v in want) and value(low) <= value(middle) <= value(high)


def detailed(runs, featured):
    """The fit that is shown of the two seeds: the lowest held-out loss in training."""
    seeds = [load_fit(runs / "environment" / f"seed{s}") for s in (0, 1)]
    best = min(seeds, key=lambda f: f.history["valid_loss"].min())
    return best.posterior(featured)


def section_table(path, key):
    """The table after the heading of this id."""
    text = path.read_text()
    return Page("<table" + text[text.index(f'id="{key}"') :].split("<table", 1)[1].split("</table>")[0] + "</table>")


def test_heat_map_holds_the_effects_on_every_treated_environment(runs, page, featured):
    """The numbers of the list of effects, so that the two cannot contradict each other."""
    table = detailed(runs, featured).effects()
    section = section_table(page, "r1-interventions")
    [lines] = section.tables
    assert lines[0] == ["Environment", "latent 0", "latent 1", "latent 2"]
    wide = {name: table.pivot(index="environment", columns="latent", values=name) for name in table.columns[2:]}
    shift, ratio = wide["shift"], wide["sd_ratio"]
    kl = (0.5 * (shift**2 + ratio**2 - 1) - np.log(ratio)).sum(axis=1).sort_values(ascending=False)
    treated = [name for e, name in enumerate(featured.env_names) if e not in featured.control]
    assert [line[0] for line in lines[1:]] == list(kl.index) and set(kl.index) == set(treated)
    hints, limit = [a["title"] for a in section.find("td")], colour_limit(torch.from_numpy(shift.to_numpy()))
    for line in lines[1:]:
        assert line[1:] == [signed(v, limit) for v in shift.loc[line[0]]]
        for latent in shift.columns:
            spread, sure = ratio.loc[line[0], latent], wide["probability"].loc[line[0], latent]
            assert hints.pop(0) == f"sd × {spread:.2f} · P {sure:.2f}"


def test_the_control_is_no_perturbation(runs, page, featured, tmp_path):
    [control] = [featured.env_names[e] for e in featured.control]
    without = report.write([runs / "environment"], tmp_path / "r.html")
    for path in (page, without):
        tables = [t for t in read(path).tables if t[0][0] == "Environment"]
        assert tables and all(len(t) > 1 and control not in [line[0] for line in t] for t in tables)


def test_how_far_prior_and_profiles_agree_is_said(runs, page, featured):
    posterior = detailed(runs, featured)
    prior = posterior.shift().loc[~featured.is_control].double().numpy().ravel()
    r = np.corrcoef(prior, posterior.effects()["shift"])[0, 1]
    assert f"their correlation is {r:.2f}.".replace("-", "−") in " ".join(read(page).text)


def test_effects_are_the_strongest_of_each_environment(runs, page, featured):
    table = detailed(runs, featured).effects()
    table["weight"] = table["shift"].abs() * table["probability"]
    lines = next(
        t for t in read(page).tables if t[0][:3] == ["Environment", "Latent", "Shift"] and "Probability" in t[0]
    )
    want = table.sort_values("weight", ascending=False, kind="stable")
    first, span = want.iloc[0], 1.15 * want["shift"].abs().max()
    assert lines[1][:5] == [
        first.environment,
        first.latent,
        signed(first["shift"], span),
        f"{signed(first.low, span)} to {signed(first.high, span)}",
        f"{first.probability:.2f}",
    ]
    assert [(line[0], line[1]) for line in lines[1:]] == list(zip(want["environment"], want["latent"], strict=True))


def test_programmes_are_the_top_genes(runs, page, featured):
    posterior = detailed(runs, featured)
    top = interpret.top_genes(interpret.gene_programmes(posterior, units="sd"), 10)
    tables = [t for t in read(page).tables if t[0] == ["Gene", "Weight"]]
    lines = [line for table in tables[-3:] for line in table[1:]]
    assert [line[0] for line in lines] == list(top["gene"])
    assert [value(line[1]) for line in lines] == pytest.approx(list(top["weight"]), abs=0.0051)


def test_models_without_moving_latents_have_no_probabilities(page):
    tables = [t for t in read(page).tables if t[0][:3] == ["Environment", "Latent", "Shift"]]
    assert ["Probability" in t[0] for t in tables] == [False, True]
    assert "The prior of this model knows no environments" in " ".join(read(page).text)


def test_without_data_the_report_says_how_to_get_the_rest(runs, tmp_path):
    found = read(report.write([runs / "environment" / "seed0"], tmp_path / "r.html"))
    text = " ".join(found.text)
    assert "Effects, gene programmes and posterior checks need the data" in text and "--data your.h5ad" in text
    assert "Posterior checks" not in text and "Latent interventions" in text
    shift = load_fit(runs / "environment" / "seed0")
    law = shift.posterior(shift.schema).shift()
    line = next(t for t in found.tables if t[0][0] == "Environment")[1]
    treated = law.loc[~shift.schema.is_control]
    most = treated[law.strength()[~shift.schema.is_control].sum(-1).argmax()].tolist()
    assert line[1:] == [signed(v, colour_limit(treated)) for v in most]
    basic = " ".join(read(report.write([runs / "basic"], tmp_path / "b.html")).text)
    assert "Latent interventions, effects, gene programmes and posterior checks need the data" in basic


def test_run_facts_and_settings_are_there(runs, page, featured):
    text = " ".join(read(page).text)
    split = json.loads((runs / "basic" / "split.json").read_text())
    assert all(f"{len(split[part]):,} {part}" in text for part in ("train", "valid", "test"))
    assert featured.digest[:16] in text and f"torch {torch.__version__}" in text and "3 of 3" in text
    assert "kl_warmup" in text and "nats a profile" in text


def test_names_are_text_never_markup(featured, tmp_path):
    genes = [*NASTY, *featured.gene_names[len(NASTY) :]]
    names = [featured.env_names[0], *NASTY, *featured.env_names[len(NASTY) + 1 :]]
    assert list(featured.control) == [0]
    data = replace(featured, gene_names=genes, env_names=names)
    folder = tmp_path / "<b>run & 'co'"
    run(QUICK, data, folder)
    found = read(report.write([folder], tmp_path / "r.html", data, title=NASTY[0]))
    assert len(found.find("script")) == 1 and not found.find("img") and len(found.find("style")) == 1
    assert not [a for _, a in found.tags if any(k.startswith("on") for k in a)]
    rows = [line[0] for t in found.tables if t[0][0] == "Environment" for line in t]
    assert set(NASTY) <= set(rows)
    text = "".join(found.text)
    assert folder.name in found.text  # of the section
    assert str(folder) in text and text.count(NASTY[0]) > 2 and "49" not in [r.strip() for r in rows]
    shown = {line[0] for t in found.tables if t[0] == ["Gene", "Weight"] for line in t[1:]}
    assert shown & set(NASTY) == set(NASTY) & set(  # those of them that are top genes are shown as they are
        interpret.top_genes(interpret.gene_programmes(load_fit(folder).posterior(data), units="sd"), 10)["gene"]
    )


def test_an_unfinished_run_says_how_far_it_came(featured, runs, tmp_path):
    def stop(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(QUICK, featured, tmp_path / "killed", on_record=stop)
    text = " ".join(read(report.write([tmp_path / "killed"], tmp_path / "r.html", featured)).text)
    assert "Not finished: 2 of 3 epochs." in text and "--resume" in text and "Learning curves" in text
    both = read(report.write([runs / "basic", tmp_path / "killed"], tmp_path / "both.html"))
    assert {line[2] for line in both.table(["Metric", "basic", "killed"]) if line[0].startswith("loss")} == {"–"}
    # A finished run that is being continued for more epochs is not finished either.
    shutil.copytree(runs / "basic", tmp_path / "longer")
    config = json.loads((tmp_path / "longer" / "config.json").read_text())
    (tmp_path / "longer" / "config.json").write_text(json.dumps(config | {"epochs": 9}))
    assert "Not finished: 3 of 9 epochs." in " ".join(
        read(report.write([tmp_path / "longer"], tmp_path / "l.html")).text
    )


@pytest.mark.parametrize("name", ["config.json", "split.json", "metrics.json", "history.csv", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\x00\x80"])
def test_a_damaged_file_is_named(runs, tmp_path, name, content):
    shutil.copytree(runs / "basic", tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(content)
    with pytest.raises((CheckpointError, ConfigError), match=re.escape(str(tmp_path / "run"))):
        report.write([tmp_path / "run"], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("scores", [{"test": [1]}, {"test": {"loss": "low"}}, {"test": {"loss": None}}])
def test_metrics_of_another_make_are_refused(runs, tmp_path, scores):
    shutil.copytree(runs / "basic", tmp_path / "run")
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(scores))
    with pytest.raises(CheckpointError, match="damaged"):
        report.write([tmp_path / "run"], tmp_path / "r.html")
    shutil.copy(tmp_path / "run" / "checkpoint.safetensors", tmp_path / "run" / "weights.safetensors")
    with pytest.raises(CheckpointError, match="damaged"):
        report.write([tmp_path / "run"], tmp_path / "r.html")


@pytest.fixture(scope="module")
def many(runs, tmp_path_factory):
    """Nineteen models in folders of long names, whose losses are not in that order."""
    folder = tmp_path_factory.mktemp("many")
    for k in range(19):
        copy = folder / f"a_folder_of_a_rather_long_name_for_model_{k:02d}"
        shutil.copytree(runs / "environment" / "seed0", copy)
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"clip": 10.00123456 + k}))
        history = pd.read_csv(copy / "history.csv")
        history.assign(valid_loss=history["valid_loss"] + (k * 5) % 19).to_csv(copy / "history.csv", index=False)
    return folder, report.write([folder], folder / "r.html")


def test_of_many_models_the_best_six_are_shown_in_detail(many):
    """Sixteen have a look of their own; the others have their column, a grey curve, and a line on how to see more."""
    folder, path = many
    found = read(path)
    table = found.table(["Metric"])
    assert table[0] == ["Metric", *sorted(f.name for f in folder.iterdir() if f.is_dir())]
    assert table[1] == ["clip", *(f"{10.00123456 + k:.3g}" for k in range(19))]
    rank = [(k * 5) % 19 for k in range(19)]
    shown = {f"r{k}-interventions" for k in range(19) if rank[k] < 6}
    assert sum(t.startswith("Only the 6 models") for t in found.text) == 13 and shown == {
        name for a in found.find("h3") if (name := a.get("id", "")).endswith("interventions")
    }
    curves = Page("".join(re.findall(r"<svg viewBox.*?</svg></svg>", path.read_text(), re.DOTALL)))
    looks = Counter(a["class"] for a in curves.find("path") if a["class"].startswith("line thick"))
    own = {look: 3 for hue in range(1, 9) for look in (f"line thick s{hue}", f"line thick s{hue} dash")}
    assert looks == own | {"line thick s0": 3 * 3}
    assert max(Counter(a["id"] for _, a in found.tags if "id" in a).values()) == 1


def test_models_are_named_by_their_folders(runs, tmp_path):
    def write(*places):
        for k, place in enumerate(places):
            shutil.copytree(runs / "environment" / "seed0", tmp_path / place)
            config = json.loads((tmp_path / place / "config.json").read_text())
            changed = {"clip": 10.0 + k, "epochs": 3} if "seed" not in place else {"seed": k}
            (tmp_path / place / "config.json").write_text(json.dumps(config | changed))
        return [group.name for group in configurations(find([tmp_path / place for place in places]))]

    assert write("a/x", "b/x", "b/y") == ["a/x", "b/x", "y"]
    assert write("one/mine/last", "two/mine/last") == ["one/mine/last", "two/mine/last"]
    assert write("c/seed0", "c/seed1", "d/e") == ["c", "e"]  # as compare writes them
    assert write("f/seed0", "f/seed1", "f/g") == ["seed0, seed1", "g"]
    assert write("h/seed0") == ["h"]
    assert write(*(f"i/seed{k}_" for k in range(5)), "i/z") == ["seed0_ … seed4_", "z"]


def test_the_same_seed_again_is_no_second_seed(runs, tmp_path):
    for name in ("memory", "stream", "again"):
        shutil.copytree(runs / "environment" / "seed0", tmp_path / name)
    assert [[run.path.name for run in group.runs] for group in configurations(find([tmp_path]))] == [
        ["again"], ["memory"], ["stream"],
    ]  # fmt: skip


def test_a_run_named_twice_is_one_run(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs)
    given = [Path("basic"), runs / "basic", Path("environment/../basic")]
    assert [run.path for run in find(given)] == [Path("basic")]
    assert "One run on" in " ".join(read(report.write(given, tmp_path / "r.html")).text)


def test_the_settings_that_differ_are_marked_and_rounded(runs, tmp_path):
    for k, lr in enumerate((0.0012345678, 0.0056789123)):
        shutil.copytree(runs / "environment" / "seed0", tmp_path / f"t{k}")
        config = json.loads((tmp_path / f"t{k}" / "config.json").read_text())
        (tmp_path / f"t{k}" / "config.json").write_text(json.dumps(config | {"lr": lr, "fractions": [0.8, 0.15, 0.05]}))
    path = report.write([tmp_path], tmp_path / "r.html")
    assert re.findall("<mark>(.*?)</mark>", path.read_text()) == 2 * ["0.00123"] + 2 * ["0.00568"]
    assert read(path).table(["Metric", "t0", "t1"])[1] == ["lr", "0.00123", "0.00568"]
    assert "0.8, 0.15, 0.05" in read(path).text
    assert "<mark>" not in report.write([tmp_path / "t0"], tmp_path / "one.html").read_text()


def test_a_legend_is_said_once_in_a_section(page):
    text = page.read_text()
    for section in re.findall(r'<p class="legend">.*?</section>', text, re.DOTALL):
        labels = re.findall(r"</svg>([^<]+)</span>", section)
        assert len(labels) == len(set(labels)) > 1
    curves = re.search(r'id="curves".*?</section>', text, re.DOTALL)[0]
    assert re.findall(r"</svg>([^<]+)</span>", curves) == [
        "basic", "environment", "training", "held out", "epoch that was kept",
    ]  # fmt: skip


def test_runs_of_different_length_share_a_frame(runs, tmp_path):
    """A run of 3 epochs beside one of 400: its end is in the frame, its start does not stretch it."""
    for name in ("long", "short"):
        shutil.copytree(runs / "environment" / "seed0", tmp_path / name)
    history = pd.read_csv(tmp_path / "long" / "history.csv").iloc[[0] * 400]
    decay = 10 + 990 * 0.9 ** np.arange(400)
    history = history.assign(epoch=np.arange(400), valid_loss=decay, train_loss=decay)
    history.to_csv(tmp_path / "long" / "history.csv", index=False)
    short = pd.read_csv(tmp_path / "short" / "history.csv").assign(
        valid_loss=[9e5, 9e4, 500], train_loss=[9e5, 9e4, 500]
    )
    short.to_csv(tmp_path / "short" / "history.csv", index=False)
    config = json.loads((tmp_path / "long" / "config.json").read_text())
    (tmp_path / "long" / "config.json").write_text(json.dumps(config | {"clip": 9.0}))
    groups = configurations(find([tmp_path]))
    loss = _curves(groups, _looks(groups))[0]
    low, high = loss.ylim
    late = decay[20:]
    assert low < 10 and 500 < high < 500 + 0.06 * (500 - late.min()) and late.max() < high
    drawn = [mark for mark in loss.marks if mark.kind == "dots"]
    assert len(drawn) == 2 and all(len(mark.x) == 1 for mark in drawn)


@pytest.mark.parametrize("parts", [{"train": 3}, {"by": None, "train": [1]}, {}])
def test_a_split_of_another_make_is_refused(runs, tmp_path, parts):
    shutil.copytree(runs / "basic", tmp_path / "run")
    (tmp_path / "run" / "split.json").write_text(json.dumps(parts))
    with pytest.raises(CheckpointError, match="damaged"):
        report.write([tmp_path / "run"], tmp_path / "r.html")


def test_folders_without_runs_and_other_data_are_refused(runs, featured, tmp_path):
    with pytest.raises(CheckpointError, match="is not a folder"):
        report.write([tmp_path / "nowhere"], tmp_path / "r.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no run"):
        report.write([tmp_path / "empty"], tmp_path / "r.html")
    with pytest.raises(ConfigError, match="no run"):
        report.write([], tmp_path / "r.html")
    with pytest.raises(DataError, match=r"basic is a run on other data .* give the data it was fitted on"):
        report.write([runs / "basic"], tmp_path / "r.html", featured.rows(range(100)))
    with pytest.raises(CheckpointError, match="cannot.*writ"):
        report.write([runs / "basic"], tmp_path)


def test_a_thousand_environments_stay_below_five_megabytes(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 12, generator=generator)
    data = cge.EnvironmentData(
        x=x,
        env=torch.arange(2000) % 1000,
        gene_names=[f"g{k}" for k in range(12)],
        env_names=[f"compound {e} at 10 µM in A375" for e in range(1000)],
        env_features=torch.randn(1000, 4, generator=generator),
        control=[0],
    )
    run(QUICK.model_copy(update={"epochs": 1, "latents": 20}), data, tmp_path / "run")
    out = report.write([tmp_path / "run"], tmp_path / "r.html", data)
    assert out.stat().st_size < 5e6
    found = read(out)
    heat = next(t for t in found.tables if t[0][0] == "Environment" and "Shift" not in t[0])
    assert len(heat) == 1 + 999
    assert "The first 25 of 999 rows." in " ".join(found.text)
    text = out.read_text()
    rows = re.findall("<tr( hidden)?>", text[text.index('class="heat"') :].split("</table>")[0])[1:]
    assert rows == [""] * 25 + [" hidden"] * 974


def test_charts_place_marks_where_they_belong():
    inner_w, inner_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    chart = Chart(
        "t", "what it shows", "x", "y", [Mark([0, 1, np.nan], [0, 0.5, 1], "s1", "dots")], xlim=(0, 1), ylim=(0, 1)
    )
    assert f'd="M0.0 {inner_h:.1f}h0M{inner_w:.1f} {inner_h / 2:.1f}h0"' in chart.svg()
    steps = Chart("t", "x", "x", "y", [Mark([0, 1, 2], [1, 0], "s1", "steps")], xlim=(0, 2), ylim=(0, 1)).svg()
    middle = f"{inner_w / 2:.1f}"
    assert f"M0.0 0.0L{middle} 0.0L{middle} {inner_h:.1f}L{inner_w:.1f} {inner_h:.1f}" in steps
    empty = Chart("<i>", "&", "<x>", "y", [Mark([], [], "s1")]).svg()
    assert "<i>" not in empty and "&lt;x&gt;" in empty and Page(empty)


def test_long_lines_are_thinned_and_keep_their_ends():
    x = np.arange(5000.0)
    drawn = Chart("t", "x", "x", "y", [Mark(x, x, "s1")], xlim=(0, 4999), ylim=(0, 4999)).svg()
    points = re.search(r'class="line s1" d="M([^"]*)"', drawn)[1].split("L")
    assert len(points) <= 400
    assert points[0].startswith("0.0 ") and points[-1].startswith(f"{WIDTH - LEFT - RIGHT:.1f} ")


def channels(colour):
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return values


def luminance(rgb):
    """Relative luminance (WCAG 2.2)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_keep_the_contrast_people_need():
    """Text 4.5 : 1 (also on the darkest cell of a heat map), lines and bars 3 : 1: light, dark, print (WCAG 2.2)."""
    style = (Path(report.__file__).parent / "page.css").read_text()
    parts = re.split("prefers-color-scheme: dark|@media print", style)
    light, dark, printed = (dict(re.findall(r"--(\w+): (#\w{6});", part)) for part in parts)
    for theme in (light, light | dark, light | printed):
        paper, wash, ink = (channels(theme[name]) for name in ("paper", "wash", "ink"))
        for name in ("ink", "soft", "link"):
            assert min(contrast(channels(theme[name]), ground) for ground in (paper, wash)) >= 4.5
        for name in (*(f"s{k}" for k in range(9)), "up", "down"):
            assert contrast(channels(theme[name]), paper) >= 3
        for name in ("up", "down"):
            assert contrast(ink, 0.6 * channels(theme[name]) + 0.4 * paper) >= 4.5


# Machado, Oliveira and Fernandes (2009), severity 1, linear RGB.
SEEN = {
    "all cones": np.eye(3),
    "no L cones": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "no M cones": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


def oklab(rgb):
    """Ottosson (2020), of linear RGB: distances are about those people see; 0.02 is just noticeable."""
    cones = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
    lab = np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])
    return np.cbrt(np.clip(rgb, 0, 1) @ cones.T) @ lab.T


@pytest.mark.parametrize("vision", SEEN)
def test_models_have_hues_that_the_colour_blind_tell_apart(vision):
    style = (Path(report.__file__).parent / "page.css").read_text()
    light, dark = (
        dict(re.findall(r"--(s[1-8]): (#\w{6});", part)) for part in re.split("color-scheme: dark", style, maxsplit=1)
    )
    for theme in (light, dark):
        assert len(theme) == HUES
        rgb = np.array([channels(colour) for colour in theme.values()])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        lab = oklab(linear @ SEEN[vision].T)
        apart = np.linalg.norm(lab[:, None] - lab, axis=-1)[np.triu_indices(HUES, 1)]
        assert apart.min() > (0.12 if vision == "all cones" else 0.095)


def test_numbers_are_short_and_have_a_true_minus():
    assert [number(v) for v in (0, 0.05, -0.25, 0.00012, -12.345, 31, 541.2, 123456, float("nan"))] == [
        "0", "0.050", "−0.250", "0.0001", "−12.3", "31.0", "541", "123,456", "–",
    ]  # fmt: skip
    assert [signed(v) for v in (-0.001, 0.5, -3.14159, 12.34, float("inf"))] == ["0", "0.50", "−3.14", "12.3", "–"]
    assert [signed(v, 0.04) for v in (0.0301, -0.0004)] == ["0.0301", "−0.0004"]


def test_the_command_line_reports_on_a_streamed_run(featured, tmp_path):
    cge.write_h5ad(featured, tmp_path / "d.h5ad")
    run(QUICK.model_copy(update={"model": "basic"}), stream(tmp_path / "d.h5ad"), tmp_path / "run")
    arguments = ["report", tmp_path / "run", "--data", tmp_path / "d.h5ad", "--stream", "--out", tmp_path / "r.html"]
    result = CliRunner().invoke(app, [str(a) for a in [*arguments, "--title", "Mine"]], catch_exceptions=False)
    assert result.exit_code == 0 and str(tmp_path / "r.html") in result.output
    text = read(tmp_path / "r.html").text
    assert {"Mine", "Effects", "Gene programmes", "Posterior checks"} <= set(text)


def test_a_streamed_run_and_one_in_memory_are_on_the_same_data(featured, tmp_path):
    cge.write_h5ad(featured, tmp_path / "d.h5ad")
    data = cge.read_h5ad(tmp_path / "d.h5ad")
    run(QUICK, stream(tmp_path / "d.h5ad"), tmp_path / "streamed")
    run(QUICK.model_copy(update={"seed": 1}), data, tmp_path / "memory")
    found = read(report.write([tmp_path / "streamed", tmp_path / "memory"], tmp_path / "r.html", data))
    assert found.table(["Metric"])[0] == ["Metric", tmp_path.name]
    text = " ".join(found.text)
    assert "2 runs of 1 model on data" in text and "different data" not in text


class Browser:
    """Headless Chromium through its driver, by plain HTTP (W3C WebDriver)."""

    def __init__(self, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.root = f"http://127.0.0.1:{probe.getsockname()[1]}"
        port = self.root.rsplit(":", 1)[1]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(["chromedriver", f"--port={port}"], **quiet)
        flags = ["headless", "no-sandbox", "disable-gpu", "disable-background-networking", f"user-data-dir={folder}"]
        wanted = {"goog:chromeOptions": {"args": flags}, "goog:loggingPrefs": {"browser": "ALL"}}
        for _ in range(100):
            try:
                self.root += "/session/" + self.call("/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
                return
            except urllib.error.URLError:
                time.sleep(0.1)
        raise RuntimeError("chromedriver does not answer")

    def call(self, path, body):
        request = urllib.request.Request(
            self.root + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["value"]

    def open(self, path, width, fragment=""):
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": size})
        self.call("/url", {"url": "about:blank"})
        self.call("/url", {"url": path.as_uri() + fragment})
        while not self.do("return location.protocol == 'file:' && document.readyState == 'complete'"):
            time.sleep(0.01)  # the driver may answer while the blank page is still there

    def do(self, script):
        return self.call("/execute/sync", {"script": script, "args": []})

    def wait(self, script):
        """Run until the script calls ``done``."""
        script = f"const done = arguments[arguments.length - 1]; {script}"
        return self.call("/execute/async", {"script": script, "args": []})

    def tap(self, x, y):
        for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
            body = {"cmd": "Input.dispatchTouchEvent", "params": {"type": kind, "touchPoints": points}}
            self.call("/goog/cdp/execute", body)

    def complaints(self):
        return self.call("/se/log", {"type": "browser"})


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not shutil.which("chromedriver"):
        pytest.skip("no chromedriver here (Debian: apt-get install chromium chromium-driver)")
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    urllib.request.urlopen(urllib.request.Request(started.root, method="DELETE")).close()
    started.process.terminate()
    started.process.wait()


VISIBLE = """return [...document.querySelectorAll("table[data-rows]")].map(t =>
    [...t.tBodies[0].rows].filter(r => r.checkVisibility()).map(r => r.cells[0].textContent))"""


def test_search_filters_rows_in_a_browser(browser, page, featured):
    browser.open(page, 1280)
    everything = browser.do(VISIBLE)
    assert len(everything) == 4 and len(everything[0]) == featured.n_envs - len(featured.control)
    browser.do("const i = document.querySelector('#search'); i.value = 'ENV 1'; i.dispatchEvent(new Event('input'))")
    typed, link = browser.do(VISIBLE), browser.do("return location.hash")
    full = [[line[0] for line in t[1:]] for t in read(page).tables if t[0][0] == "Environment"]
    assert typed == [[name for name in table if "env 1" in name] for table in full] and all(typed)
    status = browser.do("return [...document.querySelectorAll('[data-count]')].map(e => e.textContent)")
    assert status[0] == f"{len(typed[0])} of {len(full[0])} rows match “ENV 1”."
    browser.open(page, 1280, link)
    assert browser.do(VISIBLE) == typed
    browser.open(page, 1280, "#search=%E0%A4%A")  # no valid escape: searched for as it is
    assert not any(browser.do(VISIBLE))
    assert browser.complaints() == []


def test_long_tables_open_on_demand_in_a_browser(browser, page, tmp_path):
    text = page.read_text()
    row = re.search(r'<tr><th scope="row">env 1</th>.*?</tr>', text)[0]
    extra = "".join(row.replace("env 1<", f"other {k}<").replace("<tr>", "<tr hidden>") for k in range(200))
    (tmp_path / "long.html").write_text(text.replace(row, row + extra, 1))
    browser.open(tmp_path / "long.html", 1280)
    assert len(browser.do(VISIBLE)[0]) == SHOWN
    browser.do("[...document.querySelectorAll('.more button')].find(b => !b.hidden).click()")
    assert len(browser.do(VISIBLE)[0]) > 200
    assert browser.complaints() == []


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_page_never_scrolls_sideways(browser, page, width):
    browser.open(page, width)
    assert browser.do("return [document.scrollingElement.scrollWidth <= innerWidth, innerWidth]") == [True, width]
    # A table wider than the page scrolls in its own box; letters have 16 px at least, those of charts nearly.
    smallest = browser.do("""return Math.min(...[...document.querySelectorAll("body *")].filter(e => e.checkVisibility() &&
        !e.closest(".unseen, svg") && [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim()))
        .map(e => parseFloat(getComputedStyle(e).fontSize)))""")
    ticks = browser.do("""return Math.min(...[...document.querySelectorAll("svg[viewBox]")].map(e =>
        16 * e.getBoundingClientRect().width / e.viewBox.baseVal.width))""")
    assert smallest >= 15.5 and ticks >= 14
    assert browser.complaints() == []


@pytest.mark.parametrize("width", [390, 1280])
def test_many_models_of_long_names_fit_a_phone(browser, many, width):
    browser.open(many[1], width)
    assert browser.do("return [document.scrollingElement.scrollWidth <= innerWidth, innerWidth]") == [True, width]
    inside = browser.do("""return [...document.querySelectorAll(".cards")].filter(t => t.checkVisibility()).map(t =>
        t.closest(".box").scrollWidth <= t.closest(".box").clientWidth)""")
    assert inside == [width == 390]  # one card a metric, and nothing to the right of it
    assert browser.complaints() == []


def test_what_lies_to_the_right_is_announced_until_it_is_seen(browser, many):
    browser.open(many[1], 1280)
    hint = """const box = document.querySelector(".box");
        return [box.classList.contains("beyond"), getComputedStyle(box, "::before").content]"""
    assert browser.do(hint) == [True, '"Scroll sideways for more →"']
    scrolled = browser.wait("""const box = document.querySelector(".box");
        box.addEventListener("scroll", () => requestAnimationFrame(() => done(true)), {once: true});
        box.scrollLeft = box.scrollWidth""")
    assert scrolled and browser.do(hint) == [False, "none"]


def test_a_tap_reads_out_a_cell(browser, page):
    browser.open(page, 390)
    assert "Tap or click a cell" in " ".join(read(page).text)
    where = browser.do("""const cell = document.querySelector(".heat tbody").rows[1].cells[2];
        cell.scrollIntoView({block: "center"}); const r = cell.getBoundingClientRect();
        return [r.x + r.width / 2, r.y + r.height / 2]""")
    shown = """const out = document.querySelector(".readout"), box = out.getBoundingClientRect();
        return [out.checkVisibility() && box.left >= 0 && box.right <= innerWidth && box.bottom <= innerHeight,
                out.textContent, document.querySelectorAll("td.read").length]"""
    assert browser.do(shown) == [False, "", 0]
    browser.tap(*where)
    line = section_table(page, "r0-interventions")
    row = line.tables[0][2]
    title = line.find("td")[len(row)]["title"]  # its second
    assert browser.do(shown) == [True, f"{row[0]}, latent 1: {row[2]} · {title}", 1]
    browser.tap(*where)
    assert browser.do(shown)[0] is False and browser.do(shown)[2] == 0
    assert browser.complaints() == []


def test_an_injected_script_would_not_run(browser, page):
    browser.open(page, 1280)
    browser.do("const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)")
    assert browser.do("return window.ran") is None
    assert any("Content Security Policy" in line["message"] for line in browser.complaints())
