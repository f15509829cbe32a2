"""`penstock jobs`, `penstock deadletters` and what belongs to them."""
