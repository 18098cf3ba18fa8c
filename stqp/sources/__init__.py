"""From what ST platforms write to spatial samples and QuPath projects."""
