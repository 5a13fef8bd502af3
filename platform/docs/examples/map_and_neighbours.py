# %% [markdown]
# # Map and nearest neighbours
#
# Draw the promoted representation as a map of wells, and find the crops that look most like one crop. With a running
# service the same search is one call of the client.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

import cytolake.catalog

catalog = cytolake.catalog.open(os.environ.get("CYTOLAKE_ROOT", "cytolake_data"))

# %% [markdown]
# Two principal components of well profiles, after each plate's negative controls are subtracted.

# %%
wells = catalog.to_anndata("champion", level="well")
profiles = np.asarray(wells.X, dtype=np.float64)
is_control = wells.obs["is_negative_control"].to_numpy(dtype=bool)
for plate in wells.obs["plate"].unique():
    on_plate = (wells.obs["plate"] == plate).to_numpy()
    profiles[on_plate] -= profiles[on_plate & is_control].mean(axis=0)
_, scale, components = np.linalg.svd(profiles - profiles.mean(axis=0), full_matrices=False)
places = profiles @ components[:2].T

figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
for pathway in sorted(set(wells.obs["pathway"]) - {""}):
    shown = (wells.obs["pathway"] == pathway).to_numpy()
    axis.scatter(*places[shown].T, s=14, label=pathway)
axis.scatter(*places[is_control].T, s=14, c="black", marker="x", label="negative control")
axis.set(xlabel="principal component 1", ylabel="principal component 2", title="Wells by pathway")
axis.legend(frameon=False, fontsize=8)
figure.savefig("map.png", dpi=150)

# %% [markdown]
# ![Wells of the demo by pathway, and negative controls](../pictures/map.png){ width=560 }
#
# The nearest crops to one crop: cosine similarity of the stored vectors.

# %%
crops = catalog.to_anndata("champion", level="crop")
unit = crops.X / np.linalg.norm(crops.X, axis=1, keepdims=True)
similarity = unit @ unit[0]
nearest = np.argsort(-similarity)[1:6]
print(crops.obs.iloc[nearest][["plate", "well", "perturbation"]].assign(similarity=similarity[nearest].round(3)))

# %% [markdown]
# Their pixels, read from the source: (channels, height, width) of raw counts each.

# %%
pixels = catalog.crop_pixels([crops.obs_names[0], *crops.obs_names[nearest]])
figure, axes = plt.subplots(1, len(pixels), figsize=(2 * len(pixels), 2.3), layout="constrained")
for axis, crop, title in zip(axes, pixels, ["query", *(f"{similarity[i]:.2f}" for i in nearest)], strict=True):
    axis.imshow(crop[0], cmap="gray")
    axis.set(title=title, xticks=[], yticks=[])
figure.savefig("neighbours.png", dpi=150)

# %% [markdown]
# ![The nuclei of one crop and of the five most similar ones](../pictures/neighbours.png)
#
# The same search from a running service, which needs only numpy and httpx on this side. It is skipped where
# `CYTOLAKE_URL` names none.

# %%
if os.environ.get("CYTOLAKE_URL"):
    from cytolake.client import Client

    with Client(os.environ["CYTOLAKE_URL"], os.environ.get("CYTOLAKE_API_KEY", "")) as service:
        for hit in service.search(crop_id=crops.obs_names[0], k=5)["hits"]:
            print(hit["crop_id"], round(hit["similarity"], 3))
