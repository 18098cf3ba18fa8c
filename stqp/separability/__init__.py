"""What an image can tell apart: features of nuclei, out-of-fold models, pairs of groups, and which to merge."""
