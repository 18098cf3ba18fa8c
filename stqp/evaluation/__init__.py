"""Scores of predicted nuclei against the truth: segmentation, detection and typing."""
