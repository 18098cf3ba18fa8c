"""The backend that has an installed QuPath read and write, by paquo."""
