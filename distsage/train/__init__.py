"""Sampling, features, model, loop, inference, checkpoint. Runs on trainer ranks."""
