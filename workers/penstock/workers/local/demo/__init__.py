"""`penstock demo`: everything `penstock up` runs, put to work for a minute on real input, and checked."""
