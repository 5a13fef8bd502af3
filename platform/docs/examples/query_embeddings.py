# %% [markdown]
# # Query embeddings with SQL, DuckDB and Polars
#
# Read vectors and labels from the catalog: with its own SQL, with DuckDB on Arrow tables, and with Polars.

# %%
import os

import duckdb
import polars as pl

import cytolake.catalog

catalog = cytolake.catalog.open(os.environ.get("CYTOLAKE_ROOT", "cytolake_data"))

# %% [markdown]
# `Catalog.sql` runs one read-only SELECT over all tables and returns an Arrow table. How many crops did the
# newest curation keep of each perturbation? The table `curations` has the crops of all of them.

# %%
kept = catalog.sql(
    """
    select w.perturbation, count(*) crops, sum(c.is_kept::int) kept
    from curations c join crops using (crop_id) join wells w on w.well_id = crops.well_id
    where c.curation_id = (select arg_max(curation_id, curated_at) from curation_runs)
    group by all order by w.perturbation
    """
)
print(kept.to_pandas().head())

# %% [markdown]
# Representations are rows too: the encoder's blocks, the same encoder untrained, and baselines.

# %%
representations = catalog.table("representations", columns=["representation_id", "kind", "block", "pooling", "dim"])
print(representations.to_pandas().groupby("kind").size())
chosen = catalog.sql("select representation_id from representations where kind = 'trained' order by block, pooling")
representation_id = chosen["representation_id"][0].as_py()

# %% [markdown]
# DuckDB: tables that `Catalog.table` returns can be queried by their Python names. The tables are read by columns and
# conditions, so only what is needed is in memory.

# %%
profiles = catalog.table("profiles", where=f"representation_id = '{representation_id}'")
wells = catalog.table("wells", columns=["well_id", "plate", "perturbation", "is_negative_control"])
norms = duckdb.sql(
    """
    select perturbation, count(*) wells, avg(list_dot_product(profile, profile)) as mean_squared_norm
    from profiles join wells using (well_id) group by all order by mean_squared_norm desc
    """
)
print(norms.limit(5).df())

# %% [markdown]
# Polars: the mean profile of each perturbation as a matrix.

# %%
frame = pl.from_arrow(profiles).join(pl.from_arrow(wells), on="well_id")
dim = len(frame["profile"][0])
means = (
    frame.with_columns(pl.col("profile").cast(pl.Array(pl.Float32, dim)))
    .group_by("perturbation")
    .agg([pl.col("profile").arr.get(i).mean().alias(f"feature_{i}") for i in range(dim)])
    .sort("perturbation")
)
print(means.shape)
