"""Pretraining of encoders with Ray Train."""
