"""Metrics, baselines and scores per recording, set and device."""
