"""Layouts of other programs: sets of labelled images are read from them, patches written to them."""
