"""Whole studies from one file: data sets, label variants, networks and seeds in; a table with intervals out."""
