"""Catalogues against the truth, against each other, and against themselves.

=========  ===========================================================================
accuracy   catalogues against the truth: `compare`
repeats    precision from repeated observations, without a truth
runs       the outcomes of a sweep, averaged over repeats
sides      one catalogue: its columns, labels, units
pairs      rows that belong together, and what happened to the others
tables     all of these as text
writing    as files: Markdown, LaTeX, FITS, CSV
drawing    figures
=========  ===========================================================================
"""
