"""Backbones, adapters, pooling and classification heads."""
