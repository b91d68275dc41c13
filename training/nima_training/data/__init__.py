"""Ratings and photos: label files to one Parquet manifest, and the manifest to batches.

sources.py  AVA.txt, label JSON, TID2013, CSV/Parquet -> one table of distributions
maxent.py   a mean (and std) -> the least committed distribution that has it
ava.py      the official AVA lists, styles and tags
checks.py   a folder of photos -> files by name, each read and checked once
manifest.py table + folder of photos -> checked, split manifest
dataset.py  manifest -> augmented or evaluation tensors
"""
