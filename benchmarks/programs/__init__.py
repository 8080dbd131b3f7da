"""What children run: our programs, those of peers (each imports only what its environment has), and the floors."""
