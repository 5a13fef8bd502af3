"""The published recipes: their shapes, their hyper-parameters, and that they fit the GPUs they ask for."""

from __future__ import annotations

import dataclasses

import pytest

from cytolake.models import SIZES, published_size
from cytolake.models.cost import training_cost
from cytolake.recipes import RECIPES, build_recipe, published
from cytolake.train.dry_run import dry_run

PUBLISHED = [name for name, recipe in RECIPES.items() if recipe.__module__ == published.__name__]
MAE_VIT = [name for name in PUBLISHED if name.startswith("mae_vit_")]


def test_every_published_size_has_a_recipe():
    assert {f"mae_vit_{size}" for size in SIZES} == set(MAE_VIT)


# Kenyon-Dean et al. 2024, arXiv 2411.02572: size, learning rate, minibatch, epochs, drop-path and GPUs of three runs.
@pytest.mark.parametrize(
    ("name", "size", "learning_rate", "minibatch_size", "epochs", "drop_path", "gpus"),
    [
        ("mae_vit_g8", "g8", 3e-5, 8192, 500, 0.6, 256),
        ("mae_vit_l8", "l8", 3e-5, 16384, 500, 0.3, 128),
        ("ca_mae_s16", "s16", 1e-4, 2048, 100, 0.1, 16),
    ],
)
def test_hyper_parameters_are_those_published(name, size, learning_rate, minibatch_size, epochs, drop_path, gpus):
    config = build_recipe(name).pretrain
    sized = published_size(size, config.model.architecture, config.model.channels)
    assert config.model == dataclasses.replace(sized, noise_floor=255 * 1e-5**0.5)
    assert (config.optimiser, config.betas, config.weight_decay) == ("lion", (0.9, 0.95), 0.05)
    assert (config.learning_rate, config.minibatch_size, config.epochs) == (learning_rate, minibatch_size, epochs)
    assert (config.model.drop_path, config.warmup_share, config.workers) == (drop_path, 0.1, gpus)


@pytest.mark.parametrize("name", MAE_VIT)
def test_an_mae_has_the_published_decoder_and_learning_rate_of_its_size(name):
    config = build_recipe(name).pretrain
    mae = config.objective.mae
    assert (mae.decoder_depth, mae.decoder_width, mae.decoder_heads) == (8, 512, 16)
    assert (mae.mask_ratio, mae.fourier_weight, mae.contrastive_weight) == (0.75, 0.01, 0.0)
    assert config.learning_rate == (1e-4 if config.model.width <= 768 else 3e-5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_fits_the_gpus_it_asks_for(name):
    config = build_recipe(name).pretrain
    (on,) = dry_run(config, n_gpus=(config.workers,)).on_gpus
    assert on.fits, f"{on.memory_bytes / 1e9:.0f} GB"


def test_the_released_chada_has_its_published_number_of_parameters():
    config = build_recipe("chada_vit_moyen")
    model = config.pretrain.model
    released = 11_341_632 - model.width  # which has a position for the cls token in addition to the token itself
    assert training_cost(model, config.pretrain.objective, 5).encoder_parameters == released
    assert (model.heads, model.mlp_width, model.n_patches) == (2, 2048, 196)
    assert config.pretrain.objective.name == "dino"
