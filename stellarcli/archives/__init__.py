"""Getting files from the archives, whole or not at all.

=============  =====================================================================
exchange       one GET request: the head of its answer, where the body goes
wire           connections that stay open, by libcurl
client         redirects, limits, time-outs, the token, what went wrong
token          the secret that releases not yet public ask for
verification   whether bytes are a whole FITS file, and the right one
store          the directory that files go to: names, journal, resume
crew           small files, many at once, in several processes; repetitions
batch          many small files: what became of them
transfer       one large file, continued where it was cut
nights         the spectra in a tarball of a night
orders         catalogue rows as files to fetch, and the table of what was fetched
lamost, sdss   addresses and identifiers of the surveys' archives (sdss: APOGEE too)
hub            trained models from an address of one's own
vizier         catalogues of the CDS, by TAP
=============  =====================================================================
"""
