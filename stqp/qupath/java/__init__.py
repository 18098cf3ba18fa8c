"""Java object streams: nodes, and the bytes they are read from and written to."""
