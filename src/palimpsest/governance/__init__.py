"""Governance: changes to a model's memory are admitted by measurement, rolled out by shares, watched, taken back, and logged (104)."""
