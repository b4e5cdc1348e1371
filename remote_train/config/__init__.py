"""What the user wrote down: hosts.toml, the project file, ssh_config. Read, checked, and all errors at once."""
