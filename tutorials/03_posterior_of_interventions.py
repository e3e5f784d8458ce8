# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The posterior of latent interventions
#
# Which latents does a drug move, how far, and how sure are we? We simulate a screen with weak effects and few profiles,
# fit a spike-and-slab prior, and read its posterior: probabilities, intervals, a list of discoveries with a known rate of
# false ones. Then ArviZ: is the model better than one without interventions, and does it replicate the data?

# %%
import warnings

import matplotlib.pyplot as plt
import torch

import pyro_cge as cge

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ announces its 1.0 at import
    import arviz as az

# %% [markdown]
# ## A screen
#
# Five latents, fifty genes, a control and thirty environments with twenty profiles each. Every environment shifts the
# noise of one latent by N(0, variance 1.5): many shifts are smaller than the noise itself. The assay is noisy too.

# %%
environments = cge.simulate.random_shifts(5, 30, variance=1.5, cover=True, seed=4)
truth = cge.simulate.growing_network(n_latents=5, n_genes=50, decoder="linear", environments=environments, seed=4)
truth.decoder.set_scale(torch.full((50,), 1.0))
data, held_out = truth.sample(20, seed=1), truth.sample(10, seed=2)
data

# %% [markdown]
# ## Fit
#
# To keep to the subject we take the genes' programmes and the latent network as known, from an earlier screen, say: their
# weights stay as they are. With both unknown, latents are found up to a rotation only, and a target is a statement about
# the basis the fit settled in (see the first tutorial).
#
# Each environment has latent sites of its own, `env_target` (Bernoulli) and `env_shift` (Normal). Everything about a
# profile is linear and Gaussian here, so a linear encoder with a full covariance is all the guide it takes.


# %%
def fitted(prior):
    with cge.isolated(0):
        model = cge.CellModel(prior, truth.scm, truth.decoder)
        guide = cge.FullCovarianceGuide(model, hidden=())
    truth.requires_grad_(False)
    options = {"epochs": 80, "lr": 2e-2, "schedule": "one_cycle", "batch_size": 64, "standardize": False}
    return cge.fit(model, guide, data, validation=held_out, seed=0, **options)


spike_slab = fitted(cge.SpikeSlabPrior(data, d=5))
cge.plots.learning_curves(spike_slab.history)
plt.show()

# %% [markdown]
# ## Which latents, how far, how sure
#
# `targets()` is the probability that an environment intervenes on a latent; `effects()` adds the shift with an interval.

# %%
posterior = spike_slab.posterior(data)
effects = posterior.effects(level=0.9)
effects.sort_values("probability", ascending=False).head().round(2)

# %%
cge.plots.effects(effects, top=25)
plt.show()

# %% [markdown]
# ## Discoveries
#
# The longest list whose expected share of false entries is 5 %, and, because the data are simulated, what that share is.

# %%
found = posterior.discoveries(fdr=0.05)
true = data.truth.targets.numpy()
rows = [data.env_names.get_loc(e) for e in found["environment"]]
columns = [posterior.latent_names.index(j) for j in found["latent"]]
print(f"{len(found)} of {true.sum()} interventions found, {(~true[rows, columns]).mean():.0%} of the list are false")
found.head().round(3)

# %% [markdown]
# Do intervals hold the true shifts, as often as they say? Over all environments and latents, yes: most shifts are nil,
# and the spike at zero says so. On the latents that were intervened on, no: a sparse prior pulls weak shifts to zero, so
# read an interval together with its probability.

# %%
draws, shift, targets = posterior.shift_draws(999).loc, data.truth.shift.loc, data.truth.targets
cge.plots.coverage(
    {
        "all pairs": cge.metrics.coverage(draws[:, 1:], shift[1:]),
        "true targets": cge.metrics.coverage(draws[:, targets], shift[targets]),
    }
)
plt.show()
slope = (draws.mean(0)[targets] * shift[targets]).sum() / shift[targets].square().sum()
print(f"estimated against true shift of the targets: slope {slope:.2f}")

# %% [markdown]
# ## Environments that do the same
#
# Similarity of two environments is the share of targets they have in common, here in the order of a clustering.

# %%
cge.plots.similarity(posterior.similarity())
plt.show()

# %% [markdown]
# ## Is it better than no interventions at all?
#
# `to_arviz(log_likelihood=...)` adds the likelihood of whole profiles, their own noise integrated out, which is what
# leave-one-out cross-validation asks for. It corrects for what a profile told its environment's effects; networks that
# were fitted to the profiles it cannot correct for, but here nothing but the effects was. (Otherwise export the posterior
# of held-out profiles.)

# %%
none = fitted(cge.StandardPrior(data, d=5))
exported = {
    name: fit.posterior(data).to_arviz(400, log_likelihood=1000)
    for name, fit in {"spike and slab": spike_slab, "no interventions": none}.items()
}
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # about profiles with heavy-tailed weights: counted below
    comparison = az.compare(exported)
    heavy = (az.loo(exported["spike and slab"], pointwise=True).pareto_k > 0.7).mean().item()
print(f"{heavy:.1%} of profiles are too influential for the importance weights (k > 0.7)")
comparison[["rank", "elpd_loo", "p_loo", "elpd_diff", "dse"]].round(1)

# %% [markdown]
# ## Does it replicate the data?
#
# Replicated profiles are drawn from the model; per gene, the Bayesian p-value is the share of replicates above the
# observed statistic.

# %%
check = cge.metrics.predictive_check(posterior, n_samples=100, new_profiles=True)
axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")[1]
for statistic, ax in zip(["mean", "sd", "skewness"], axes):
    cge.plots.predictive_check(check, statistic, ax)
plt.show()

# %% [markdown]
# Everything else, every site with named dimensions, is in the export:

# %%
posterior.to_arviz(n_samples=200).posterior.sizes
