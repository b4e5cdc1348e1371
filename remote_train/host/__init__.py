"""What is shipped to the host: the standard library only, Python 3.8 syntax, imports nothing of ours but itself."""
