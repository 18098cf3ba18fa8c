"""From a trained network to typed nuclei on a slide."""
