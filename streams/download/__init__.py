"""Downloads of data sets and weights: resumable, checked by hash, unpacked safely."""
