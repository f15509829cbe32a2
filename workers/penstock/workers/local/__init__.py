"""Running everything on this machine: `penstock up` and `penstock demo`."""
