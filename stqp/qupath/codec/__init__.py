"""The codec of QuPath's data.qpdata: between the stream's nodes and columns of objects."""
