"""QuPath projects without QuPath: the objects of an image, the project's files, the .qpdata codec."""
