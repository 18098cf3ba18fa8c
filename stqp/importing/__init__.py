"""ST runs into QuPath projects: sources on the left, projects on the right."""
