"""The only floor that writes to the terminal."""
