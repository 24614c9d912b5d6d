"""What the bridge costs beside its Node version (`make bench`), and whether it endures (`make soak`)."""
