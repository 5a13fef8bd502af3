"""Prediction of the performance of prompts from their text, and of queries from their vector or plan."""
