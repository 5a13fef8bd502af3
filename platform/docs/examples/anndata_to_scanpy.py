# %% [markdown]
# # AnnData to scanpy
#
# A UMAP of crop embeddings in scanpy, coloured by pathway and by plate. If the colours of plates form clusters of their
# own, the vectors hold a batch effect.

# %%
import os

import matplotlib.pyplot as plt
import scanpy as sc

import cytolake.catalog

catalog = cytolake.catalog.open(os.environ.get("CYTOLAKE_ROOT", "cytolake_data"))
cells = catalog.to_anndata("champion", level="crop")
print(cells)

# %% [markdown]
# `obs` has names, positions and the plate map of every crop; other columns of the plate map are `Metadata_...`. Keep
# some hundreds of crops, so that the map takes seconds.

# %%
cells = sc.pp.sample(cells, n=min(600, cells.n_obs), rng=0, copy=True)
sc.pp.neighbors(cells, use_rep="X", random_state=0)
sc.tl.umap(cells, random_state=0)

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
for axis, column in zip(axes, ["pathway", "plate"], strict=True):
    sc.pl.umap(cells, color=column, ax=axis, show=False, frameon=False)
figure.savefig("umap.png", dpi=150)

# %% [markdown]
# ![Crops of the demo by pathway and by plate](../pictures/umap.png)
#
# Save it for other tools. `cytolake export blocks.h5ad --model MODEL_ID` writes every block of an encoder without a
# script.

# %%
cells.write_h5ad("champion_crops.h5ad")
