"""Which files of a project travel, under which rules, and the manifest that names them."""
