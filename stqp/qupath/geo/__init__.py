"""Parts of the GeoJSON reader and writer."""
