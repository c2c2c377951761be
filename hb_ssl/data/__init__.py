"""Recordings, labels, groups, splits, synthetic phonocardiograms and HF datasets."""
