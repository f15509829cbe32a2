"""`penstock jobs`, `penstock deadletters` and `penstock audit`."""
