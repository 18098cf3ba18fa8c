"""Training patches: cut from projects, kept in one HDF5 file."""
