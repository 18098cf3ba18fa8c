"""What QuPath would stumble over in a project."""
