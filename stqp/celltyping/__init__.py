"""From counts to classes that an image can show: markers, gene names, taxonomies."""
